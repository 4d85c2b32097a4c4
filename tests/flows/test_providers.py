"""Whole jobs at Google Cloud Storage and Azure, as a user runs them: source, destination and state in buckets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from demo.images import make_image
from tests.flows.project import Ended, Project
from tests.servers.memory_azure import SAS, MemoryAzure
from tests.servers.odd_gcs import OddGcs

BUCKETS = ("old-bucket", "new-bucket", "state-bucket")
KEYS = ("a.jpg", "b c?d#e.jpg", "100%2F.jpg", "deep/ümlaut+&.jpg")


def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


class Google:
    """Google Cloud Storage with tokens, which google-auth gets from the server for a service account's key."""

    root = "gs://"

    def __init__(self, server: OddGcs) -> None:
        self.server = server
        server.objects = {name: {} for name in BUCKETS}
        server.tokens = set()
        account = {
            "type": "service_account", "client_email": "ferry@project.iam.gserviceaccount.com",
            "private_key": private_key(), "token_uri": f"{server.url}/token",
        }  # fmt: skip
        self.environment: dict[str, str | None] = {"GOOGLE": json.dumps(account), "WRONG": "/home/me/key.json"}
        self.side = {"endpoint_url": server.url, "credentials": "env:GOOGLE"}
        self.wrong = "env:WRONG does not hold the JSON of a Google credentials file"

    def store(self, bucket: str, key: str, data: bytes) -> None:
        self.server._store(bucket, {"name": key, "contentType": "image/jpeg"}, data)

    def objects(self, bucket: str) -> dict[str, bytes]:
        return {key: stored.data for key, stored in self.server.objects[bucket].items()}

    def delete(self, bucket: str, key: str) -> None:
        del self.server.objects[bucket][key]


class Azure:
    """Azure Blob Storage with a SAS."""

    root = "az://ferryshop/"

    def __init__(self, server: MemoryAzure) -> None:
        self.server = server
        self.environment: dict[str, str | None] = {"SAS": f"?{SAS}", "WRONG": f"?{SAS}ly-other"}
        self.side = {"endpoint_url": server.url, "credentials": "env:SAS"}
        self.wrong = "destination container `new-bucket`"

    def store(self, bucket: str, key: str, data: bytes) -> None:
        self.server.store(bucket, key, data)

    def objects(self, bucket: str) -> dict[str, bytes]:
        return {key: blob.data for key, blob in self.server.containers[bucket].items()}

    def delete(self, bucket: str, key: str) -> None:
        del self.server.containers[bucket][key]


@pytest.fixture
def google() -> Iterator[Google]:
    with OddGcs(page_keys=3) as server:
        yield Google(server)


@pytest.fixture
def azure() -> Iterator[Azure]:
    with MemoryAzure(*BUCKETS) as server:
        yield Azure(server)


@pytest.fixture(params=[pytest.param("google", marks=pytest.mark.slow), "azure"])
def provider(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def ferry(project: Project, provider: Google | Azure, *arguments: str, code: int = 0, **given: str | None) -> Ended:
    return project.ferry(*arguments, env={**provider.environment, **given}).expect(code)


def test_a_list_in_a_bucket(project: Project, provider: Google | Azure) -> None:
    """Rows of a list in a bucket are copied from one bucket to another, with the state in a third."""
    images = {key: make_image("jpeg", number) for number, key in enumerate(KEYS)}
    root = f"{provider.root}old-bucket/images/"
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerows([["url", "sku"], *([root + key, key] for key in KEYS)])
    rows.writerows([[f"{provider.root}other-bucket/images/x.jpg", "other"], [f"{root}gone.jpg", "gone"]])
    for key, data in images.items():
        provider.store("old-bucket", f"images/{key}", data)
    provider.store("old-bucket", "lists/products.csv", text.getvalue().encode())
    project.job(
        manifest=f"{provider.root}old-bucket/lists/products.csv",
        source={**provider.side, "roots": [root]},
        destination={"uri": f"{provider.root}new-bucket/products", **provider.side, "metadata": {"shop": "7"}},
        state=f"{provider.root}state-bucket/jobs/products",
    )
    planned = ferry(project, provider, "plan", "job.yaml")
    assert f"{root}{KEYS[0]} -> {provider.root}new-bucket/products/{KEYS[0]}" in planned.stdout
    assert provider.objects("new-bucket") == provider.objects("state-bucket") == {}
    run = ferry(project, provider, "run", "job.yaml", "--json").json
    counts = run["counts"]
    assert (counts["copied"], counts["failed"], counts["pending"]) == (len(KEYS), 2, 0)
    assert provider.objects("new-bucket") == {f"products/{key}": data for key, data in images.items()}
    assert "jobs/products/plan/plan.json" in provider.objects("state-bucket")
    failures = ferry(project, provider, "failures", "job.yaml", "--json").json["failures"]
    assert {row["id"]: row["error_class"] for row in failures} == {"other": "bad_url", "gone": "not_found"}
    assert ferry(project, provider, "status", "job.yaml", "--json").json["by_size"] == {}
    assert ferry(project, provider, "verify", "job.yaml", "--json").json["ok"] is True
    provider.delete("new-bucket", "products/a.jpg")
    message = ferry(project, provider, "verify", "job.yaml", "--list", "--json", code=1).json["message"]
    assert "1 missing, 0 altered" in message
    assert ferry(project, provider, "run", "job.yaml", "--json").json["this_run"] == {"copied": 1}
    assert provider.objects("new-bucket")["products/a.jpg"] == images["a.jpg"]
    assert b"canary-secret" not in b"".join(provider.objects("state-bucket").values())


def test_from_azure_to_google(project: Project, google: Google, azure: Azure) -> None:
    """A listed container of one provider is copied to a bucket of the other, each with its own credentials."""
    images = {key: make_image("png", number) for number, key in enumerate(KEYS)}
    for key, data in images.items():
        azure.store("old-bucket", f"images/{key}", data)
    project.job(
        manifest=f"{azure.root}old-bucket/images/", source=azure.side,
        destination={"uri": "gs://new-bucket/products/", **google.side},
    )  # fmt: skip
    environment = {**azure.environment, **google.environment}
    ended = project.ferry("run", "job.yaml", "--json", env=environment).expect(0)
    assert ended.json["this_run"] == {"copied": len(KEYS)}
    assert google.objects("new-bucket") == {f"products/{key}": data for key, data in images.items()}
    assert "canary-secret" not in ended.text


def test_a_preflight(project: Project, provider: Google | Azure) -> None:
    """Credentials that do not open the bucket, and a bucket that is not there, end the run before anything moves."""
    provider.store("old-bucket", "images/a.jpg", make_image("jpeg", 1))
    settings: dict[str, Any] = {"manifest": f"{provider.root}old-bucket/images/", "source": provider.side}
    wrong = {"uri": f"{provider.root}new-bucket/", **provider.side, "credentials": "env:WRONG"}
    project.job(**settings, destination=wrong)
    assert provider.wrong in ferry(project, provider, "run", "job.yaml", code=2).stderr
    project.job(**settings, destination={**wrong, "credentials": "env:NOT_SET"})
    message = ferry(project, provider, "run", "job.yaml", code=2).stderr
    assert "destination.credentials: the environment variable NOT_SET is not set" in message
    project.job(**settings, destination={"uri": f"{provider.root}no-such-bucket/", **provider.side})
    assert "`no-such-bucket`" in ferry(project, provider, "run", "job.yaml", code=2).stderr
    assert not any(provider.objects(name) for name in ("new-bucket", "state-bucket"))


@pytest.mark.parametrize("command", ["plan", "run"])
def test_credentials_that_cannot_be(project: Project, azure: Azure, command: str) -> None:
    """They end the run before anything moves, and not each row below a root."""
    project.manifest([{"url": f"{azure.root}old-bucket/a.jpg"}])
    side = {**azure.side, "credentials": "env:KEY"}
    project.job(source={**side, "roots": [f"{azure.root}old-bucket/"]}, destination=f"file://{project.folder}/out/")
    message = ferry(project, azure, command, "job.yaml", code=2, KEY="canary-secret").stderr
    assert "source: credentials: the key of an Azure storage account is base64" in message
    assert "canary-secret" not in message


def test_check(project: Project, provider: Google | Azure) -> None:
    """`ferry check` copies a sample, predicts the run, and leaves nothing."""
    for number, key in enumerate(KEYS):
        provider.store("old-bucket", f"images/{key}", make_image("jpeg", number))
    project.job(
        manifest=f"{provider.root}old-bucket/images/", source=provider.side,
        destination={"uri": f"{provider.root}new-bucket/products/", **provider.side},
    )  # fmt: skip
    ended = ferry(project, provider, "check", "job.yaml")
    assert "destination: writing and reading work, and so does listing" in ended.stdout
    assert "conditional writes: yes" in ended.stdout
    assert provider.objects("new-bucket") == {}
