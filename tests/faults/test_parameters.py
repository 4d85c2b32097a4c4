"""A Prefect server refuses parameters with secrets in them before it writes them down."""

from __future__ import annotations

import json
import traceback
import urllib.error
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.canaries import Canaries, files, where_found
from tests.flows.project import Prefect

pytestmark = pytest.mark.slow
CANARIES = Canaries(seed=45)


def secret(name: str) -> str:
    return CANARIES.make(name)


JOB: dict[str, Any] = {"name": "n", "manifest": "list.csv", "destination": "s3://bucket/p/"}
REFUSED: dict[str, dict[str, Any]] = {
    "a header": {"source": {"headers": {"Authorization": f"Bearer {secret('a header')}"}}},
    "a header in small letters": {"source": {"headers": {"cookie": secret("a header in small letters")}}},
    "a password in the list's address": {"manifest": f"https://me:{secret('list: password')}@h.example/l.csv"},
    "a token in the list's address": {"manifest": f"https://h.example/l.csv?a=b&Access_Token={secret('list: token')}"},
    "a signature in the list's address": {"manifest": f"https://h.example/l.csv?X-Amz-Signature={secret('list: sig')}"},
    "a signature in source.url": {"source": {"url": f"https://h.example/{{id}}?sig={secret('source: sig')}"}},
    "a password in an endpoint": {"source": {"endpoint_url": f"https://me:{secret('endpoint')}@h.example"}},
    "a password in the destination": {"destination": f"s3://me:{secret('destination')}@bucket/"},
    "the same, written out": {"destination": {"uri": f"s3://me:{secret('destination, long')}@bucket/"}},
    "its endpoint": {"destination": {"uri": "s3://b/", "endpoint_url": f"https://{secret('its endpoint')}@h.example"}},
    "a password in an API's address": {
        "manifest": {"url": f"https://me:{secret('API')}@h.example/", "paginator": {"type": "single_page"}}
    },
    "a token": {"source": {"auth": {"type": "bearer", "token": secret("a token")}, "auth_for": ["h"]}},
    "a client's secret": {
        "source": {
            "auth": {
                "type": "oauth2_client_credentials",
                "access_token_url": "https://id.example/",
                "client_id": "c",
                "client_secret": secret("a client's secret"),
            },
            "auth_for": ["h"],
        }
    },
    "a password in the state": {"state": f"s3://me:{secret('state')}@bucket/p"},
}
TAKEN: list[dict[str, Any]] = [
    {},
    {
        "source": {
            "headers": {"Authorization": "env:TOKEN", "X-Key": "secret:block", "ACCEPT": "image/*"},
            "headers_for": ["*"],
        }
    },
    {"source": {"url": "https://h.example/{id}@2x.jpg?token={token}&w=100"}, "manifest": "lists/a@b.csv"},
    {"manifest": "https://h.example/l.csv?shop=5&format=csv", "state": "s3://bucket/state"},
    {
        "manifest": {"url": "https://pim.example/v1?per_page=9", "paginator": {"type": "offset", "limit": 9}},
        "source": {"auth": {"type": "http_basic", "username": "me", "password": "secret:block"}},
    },
    {"destination": {"uri": "s3://b/p@q/", "endpoint_url": "http://127.0.0.1:9000"}, "source": {"url": None}},
]


def test_parameters_are_references(prefect_api: Prefect, tried: Callable[..., None]) -> None:
    """Literal secrets are refused by the deployment's schema and stand nowhere after; what is right is taken."""
    from prefect.exceptions import ParameterTypeError
    from prefect.utilities.callables import parameter_schema

    from flows.migrate import migrate

    flow = prefect_api.post("flows/", {"name": "parameters"})
    asked = {
        "name": "refusing", "flow_id": flow["id"], "enforce_parameter_schema": True,
        "parameter_openapi_schema": parameter_schema(migrate).model_dump(),
    }  # fmt: skip
    where = f"deployments/{prefect_api.post('deployments/', asked)['id']}/create_flow_run"
    for given in TAKEN:
        assert prefect_api.post(where, {"parameters": {"job": {**JOB, **given}}})["id"]
    for name, given in REFUSED.items():
        with pytest.raises(urllib.error.HTTPError) as caught:
            prefect_api.post(where, {"parameters": {"job": {**JOB, **given}}})
        assert caught.value.code == 409, name
    assert b"secret:block" in prefect_api.database()
    found = where_found(CANARIES, files(prefect_api.home))
    assert not found, json.dumps({name: sorted(names) for name, names in found.items()})
    # Where no server checked them the flow does, and what is logged of it quotes no value.
    for name, given in REFUSED.items():
        with pytest.raises(ParameterTypeError) as refused:
            migrate.validate_parameters({"job": {**JOB, **given}})
        assert not CANARIES.found_in("".join(traceback.format_exception(refused.value)).encode()), name
    tried("secrets as parameters", len(REFUSED), lost=len(found))
