"""The access to each provider's buckets, from the job's references and the environment of the run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from ferry.core import UserError
from ferry.storage import Access, AzureAccess, GoogleAccess, S3Access
from tasks import secrets
from tests.support.helpers import make_job

FILE = {"type": "service_account", "private_key": "topsecret"}
PRINCIPAL = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "topsecret"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Only what a test sets, and none of the machine's own Azure settings."""
    storage = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN")
    for name in (*storage, *PRINCIPAL, "AZURE_FEDERATED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def of(uri: str, **given: Any) -> Access:
    """The access to a destination. As the source's it is the same, and its child processes get the same."""
    job = make_job(destination={"uri": uri, **given}, source={**given, "roots": [uri]})
    source, destination = secrets.accesses(job)
    assert source == destination == secrets.destination_access(job)
    assert Access.decode(json.loads(json.dumps(dataclasses.asdict(destination)))) == destination
    assert "topsecret" not in repr(destination)
    return dataclasses.replace(destination, network=type(destination.network)())


def test_google(environment: pytest.MonkeyPatch) -> None:
    """A credentials file in a variable, another account by the machine's own credentials, none, or the machine's."""
    environment.setenv("JSON", json.dumps(FILE))
    uri = "gs://bucket/p/"
    assert of(uri) == GoogleAccess()
    assert of(uri, endpoint_url="http://127.0.0.1:1") == GoogleAccess("http://127.0.0.1:1")
    assert of(uri, credentials="anonymous") == GoogleAccess(anonymous=True)
    assert of(uri, credentials="env:JSON") == GoogleAccess(info=FILE)
    account = "me@project.iam.gserviceaccount.com"
    assert of(uri, credentials=f"impersonate:{account}") == GoogleAccess(impersonate=account)


@pytest.mark.parametrize("value", ["/home/topsecret.json", "[]", '{"topsecret": 1}', '"topsecret"', "[" * 99_999])
def test_what_is_not_a_credentials_file(environment: pytest.MonkeyPatch, value: str) -> None:
    """It is refused without a word of it. The usual mistake is a path."""
    environment.setenv("JSON", value)
    with pytest.raises(UserError) as caught:
        of("gs://bucket/p/", credentials="env:JSON")
    assert "destination.credentials" in str(caught.value) or "source.credentials: env:JSON does not" in str(
        caught.value
    )
    assert "set GOOGLE_APPLICATION_CREDENTIALS to its path" in str(caught.value)
    assert "topsecret" not in str(caught.value)


AZURE: list[tuple[dict[str, str], dict[str, Any]]] = [
    ({}, {}),
    ({"AZURE_CLIENT_ID": "c"}, {"settings": {"client_id": "c"}}),
    ({"AZURE_TENANT_ID": "t"}, {}),
    (PRINCIPAL, {"settings": {"tenant_id": "t", "client_id": "c", "client_secret": "topsecret"}}),
    ({**PRINCIPAL, "AZURE_CLIENT_SECRET": ""}, {"settings": {"client_id": "c"}}),
    (
        {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_FEDERATED_TOKEN_FILE": "/var/run/token"},
        {"settings": {"tenant_id": "t", "client_id": "c", "token_file_path": "/var/run/token"}},
    ),
    (
        {**PRINCIPAL, "AZURE_FEDERATED_TOKEN_FILE": "/var/run/token"},
        {"settings": {"tenant_id": "t", "client_id": "c", "client_secret": "topsecret"}},
    ),
    ({**PRINCIPAL, "AZURE_STORAGE_KEY": "topsecretkey"}, {"secret": "topsecretkey"}),
    ({"AZURE_STORAGE_SAS_TOKEN": "?sig=topsecret\n"}, {"secret": "?sig=topsecret"}),
    ({"AZURE_STORAGE_SAS_TOKEN": "?sig=topsecret", "AZURE_STORAGE_KEY": "topsecretkey"}, {"secret": "topsecretkey"}),
    ({"AZURE_STORAGE_KEY": "topsecretkey", "AZURE_STORAGE_ACCOUNT": ""}, {"secret": "topsecretkey"}),
    ({"AZURE_STORAGE_KEY": "topsecretkey", "AZURE_STORAGE_ACCOUNT": "shop"}, {"secret": "topsecretkey"}),
    ({"AZURE_STORAGE_KEY": "topsecretkey", "AZURE_STORAGE_ACCOUNT": "other"}, {}),
]


@pytest.mark.parametrize(("variables", "found"), AZURE)
def test_azure_by_the_environment(
    environment: pytest.MonkeyPatch, variables: dict[str, str], found: dict[str, Any]
) -> None:
    """The table of azure_access, without `credentials`."""
    for name, value in variables.items():
        environment.setenv(name, value)
    assert of("az://shop/bucket/p/") == AzureAccess(**found)


def test_azure_by_the_job(environment: pytest.MonkeyPatch) -> None:
    """A reference has priority over the environment."""
    environment.setenv("AZURE_STORAGE_KEY", "topsecretkey")
    environment.setenv("OLD_SAS", " ?sv=1&sig=topsecret ")
    uri = "az://shop/bucket/p/"
    assert of(uri, credentials="anonymous") == AzureAccess(anonymous=True)
    assert of(uri, credentials="env:OLD_SAS") == AzureAccess(secret="?sv=1&sig=topsecret")
    with pytest.raises(UserError, match=r"source\.credentials: the environment variable NONE is not set"):
        of(uri, credentials="env:NONE")


def test_each_side_has_its_own_provider(environment: pytest.MonkeyPatch) -> None:
    """Directories and web servers need no credentials; a state in a bucket has those of the destination."""
    environment.setenv("AZURE_STORAGE_KEY", "topsecretkey")
    job = make_job(
        manifest="s3://old/images/", source={"credentials": "anonymous"}, destination="file:///srv/x/",
        state="az://shop/bucket/state",
    )  # fmt: skip
    source, destination = secrets.accesses(job)
    assert isinstance(source, S3Access)
    assert source.anonymous
    assert isinstance(destination, AzureAccess)
    assert destination.secret == "topsecretkey"
    both = secrets.accesses(make_job(destination={"uri": "file:///srv/x/", "credentials": "env:NONE"}))
    assert [type(access) for access in both] == [Access, Access]


def test_blocks_of_credentials() -> None:
    """`secret:BLOCK` is a Prefect block at Google and Azure, too; `env:` and the others are none."""
    job = make_job(
        manifest="gs://old/images/", source={"credentials": "secret:json"},
        destination={"uri": "az://shop/bucket/", "credentials": "secret:sas"},
    )  # fmt: skip
    assert secrets.named_blocks(job) == [
        ("source.credentials", "secret", "json"), ("destination.credentials", "secret", "sas")
    ]  # fmt: skip
    assert not secrets.names_blocks(make_job(destination={"uri": "gs://bucket/", "credentials": "env:JSON"}))
