"""A manifest that is an API, and `source.auth`: what the model accepts, and what it says of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ferry.core.errors import UserError
from ferry.http import Auth
from ferry.job import ApiList, Job
from tasks import secrets
from tasks.job_file import load_job
from tests.support.helpers import make_job

API = {"url": "https://pim.example/v1/products?per_page=200", "paginator": {"type": "header_link"}}
OAUTH = {
    "type": "oauth2_client_credentials", "access_token_url": "https://id.example/token", "client_id": "env:CID",
    "client_secret": "env:CS", "access_token_request_data": {"scope": "read", "tenant": "env:TENANT"},
}  # fmt: skip


def refused(manifest: Any = API, **source: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        make_job(manifest=manifest, source=source)
    return str(caught.value)


def of(type_: str, **keys: Any) -> dict[str, Any]:
    return {**API, "paginator": {"type": type_, **keys}}


@pytest.mark.parametrize(
    "manifest",
    [
        API,
        of("single_page"),
        of("json_link", next_url_path="paging.next"),
        of("cursor", cursor_path="meta.next", cursor_param="after"),
        of("page_number", base_page=1, page_param="p", total_path="meta.0.pages"),
        of("offset", limit=100),
        {**API, "explode": "images", "fields": {"url": "_.href", "n": "_n"}},
    ],
)
def test_a_job_with_an_api(manifest: dict[str, Any]) -> None:
    """Each paginator is accepted, and the job survives the way to another process; its name in messages is the URL."""
    job = make_job(manifest=manifest, source={"auth": OAUTH})
    assert isinstance(job.manifest, ApiList)
    assert job.manifest_address == API["url"]
    assert not job.is_listed()
    assert Job.model_validate(job.model_dump(mode="json")) == job
    assert make_job(manifest="list.csv").manifest_address == "list.csv"


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({**API, "paginater": 1}, "unknown key `paginater`; did you mean `paginator`?"),
        ({"url": API["url"]}, "paginator"),
        ({**API, "url": "ftp://h/"}, "begins with `https://`"),
        ({**API, "url": "https://me:topsecret@h/"}, "user name or password; use `auth`"),
        ({**API, "url": "https://h/?api_key=topsecret"}, "use `source.auth`"),
        ({**API, "data_selector": "$.items[*]"}, "a path names keys with dots between them"),
        ({**API, "fields": {"url": "a..b"}}, "a path names keys with dots between them"),
        ({**API, "explode": "images"}, "`explode` needs `fields`"),
        (of("auto"), "'single_page', 'header_link'"),
        (of("json_link"), "`type: json_link` needs `next_url_path`"),
        (of("cursor", cursor_path="x"), "`type: cursor` needs `cursor_param`"),
        (of("offset", limit=10, page_param="p"), "`page_param` does not belong to `type: offset`, which has `limit`"),
        (of("single_page", limit=10), "`limit` does not belong to `type: single_page`, which has no other key"),
        (of("offset", limit=0), "greater than or equal to 1"),
        (7, "valid string"),
        (" ", "manifest is empty"),
    ],
)
def test_manifests_that_are_refused(manifest: Any, words: str) -> None:
    """Each message says what to write, and none shows a secret."""
    assert words in refused(manifest)


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        ({"type": "bearer", "token": "topsecret"}, "holds a literal value"),
        ({"type": "bearer"}, "`type: bearer` needs `token`"),
        ({"type": "api_key", "name": "X Key", "api_key": "env:K"}, "is not the name of a header"),
        ({"type": "http_basic", "username": "me", "password": "topsecret"}, "holds a literal value"),
        ({**OAUTH, "client_secret": "topsecret"}, "holds a literal value"),
        ({**OAUTH, "access_token_url": "http://id.example/token"}, "must begin with `https://`"),
        ({**OAUTH, "access_token_url": "https://me:topsecret@id.example/"}, "user name or password"),
        ({**OAUTH, "access_token_request_data": {"password": "topsecret"}}, "`password` holds a literal value"),
        ({**OAUTH, "tokn": "env:T"}, "did you mean `token`?"),
    ],
)
def test_credentials_that_are_refused(auth: dict[str, Any], words: str) -> None:
    """Secrets are references, each type has its keys."""
    assert words in refused(auth=auth)


def test_where_a_credential_goes() -> None:
    """By default to the list and to `source.url`; other headers' hosts are not meant, and some host must be."""
    bearer = {"type": "bearer", "token": "env:T"}
    source = {"auth": bearer, "url": "http://img.example:8080/{id}.jpg", "headers_for": ["cdn.example"]}
    assert make_job(manifest=API, source=source).auth_recipients() == ["https://pim.example", "http://img.example:8080"]
    assert make_job(source={"auth": bearer, "auth_for": ["h"]}).auth_recipients() == ["h"]
    assert "`auth_for: [img.old.example]`" in refused("list.csv", auth=bearer)
    assert "an entry of auth_for is a host" in refused(auth=bearer, auth_for=["https://h/path"])
    clash = {"headers": {"authorization": "env:H"}, "headers_for": ["h"]}
    assert "`auth` and `headers` both set `Authorization`" in refused(auth=bearer, **clash)
    key = {"type": "api_key", "name": "k", "api_key": "env:K", "location": "query"}
    assert make_job(manifest=API, source={"auth": key, **clash})


def test_a_credential_is_a_setting_that_changes_results() -> None:
    """Its kind and its hosts plan failed rows again; jobs without one keep their fingerprint."""
    with_auth = make_job(source={"auth": {"type": "bearer", "token": "env:T"}, "auth_for": ["h"]})
    assert with_auth.settings_digest() != make_job().settings_digest()
    assert "auth" not in make_job().result_settings()
    renamed = make_job(source={"auth": {"type": "bearer", "token": "env:U"}, "auth_for": ["h"]})
    assert renamed.fingerprint() == with_auth.fingerprint()


def test_mistakes_have_lines(tmp_path: Path) -> None:
    """All mistakes of the mapping are named together, by their keys and lines in the file."""
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: x\ndestination: file:///x/\nmanifest:\n  url: https://pim.example/\n  paginator:\n    type: cursr\n"
        "  fields:\n    url: a b\nsource:\n  auth:\n    type: bearer\n    token: topsecret\n"
    )
    with pytest.raises(UserError) as caught:
        load_job(path)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0].strip() for line in lines] == ["line 6", "line 8", "line 12"]
    assert lines[0].startswith("  line 6: manifest.paginator.type: ")
    assert lines[0].endswith("did you mean `cursor`?")
    assert lines[1].startswith("  line 8: manifest.fields.url: ")
    assert lines[2].startswith("  line 12: source.auth.token: holds a literal value")
    assert "topsecret" not in str(caught.value)


def test_references_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each type has its secrets from the environment of the run, and names the setting of a missing one."""
    for name in ("T", "K", "P", "CID", "CS", "TENANT"):
        monkeypatch.setenv(name, f"value of {name}")
    to = ["https://pim.example"]

    def auth(**given: Any) -> Auth:
        found = secrets.auth(make_job(manifest=API, source={"auth": given}))
        assert found is not None
        return found

    assert auth(type="bearer", token="env:T") == Auth(to, header=("Authorization", "Bearer value of T"))
    assert auth(type="api_key", name="X-K", api_key="env:K") == Auth(to, header=("X-K", "value of K"))
    query = auth(type="api_key", name="k", api_key="env:K", location="query")
    assert query == Auth(to, parameter=("k", "value of K"))
    basic = auth(type="http_basic", username="me", password="env:P")
    assert basic.header == ("Authorization", "Basic bWU6dmFsdWUgb2YgUA==")
    token = auth(**OAUTH).token
    assert token is not None
    assert (token.client_id, token.client_secret) == ("value of CID", "value of CS")
    assert token.data == {"scope": "read", "tenant": "value of TENANT"}
    monkeypatch.delenv("CS")
    with pytest.raises(UserError, match=r"source\.auth\.client_secret: the environment variable CS is not set"):
        auth(**OAUTH)
    assert secrets.auth(make_job()) is None
    blocks = make_job(manifest=API, source={"auth": {"type": "bearer", "token": "secret:pim"}})
    assert secrets.named_blocks(blocks) == [("source.auth.token", "secret", "pim")]
