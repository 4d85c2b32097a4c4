"""The IAM policies: they suffice for a run, and what they do not name is refused, by a server that obeys them.

SeaweedFS evaluates the same documents as AWS for S3; the policies about ECS are only checked for their form.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError

from demo.images import make_image
from demo.s3 import S3Server
from tests.flows.project import Cli
from tests.flows.site import UNITS

pytestmark = pytest.mark.slow

FOLDER = UNITS.parent / "iam"
OF_A_RUN = ("source-bucket", "destination", "state")
NAMES = {"SOURCE-BUCKET": "old", "DESTINATION-BUCKET": "new", "STATE-BUCKET": "state", "PREFIX": "products"}
LARGE = 20 << 20  # uploaded in parts


def policy(name: str) -> str:
    """A policy with this test's buckets in it."""
    text = (FOLDER / f"{name}.json").read_text()
    for placeholder, here in NAMES.items():
        text = text.replace(placeholder, here)
    return text


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server with three buckets and a source, and an identity that may do what a run's policies say."""
    with S3Server(tmp_path_factory.mktemp("limited"), {name: policy(name) for name in OF_A_RUN}) as server:
        for bucket in ("old", "new", "state"):
            server.make_bucket(bucket)
        client = server.client()
        for number in range(4):
            client.put_object(Bucket="old", Key=f"images/{number}.jpg", Body=make_image("jpeg", number))
        client.put_object(Bucket="old", Key="images/large.bin", Body=os.urandom(LARGE))
        client.put_object(Bucket="new", Key="others/theirs.jpg", Body=b"not ours")
        yield server


def test_they_suffice_for_a_run(limited: S3Server, cli: Cli, tmp_path: Path) -> None:
    """From bucket to bucket with the state in a third: moved, an upload in parts among it, and read back."""
    job: dict[str, Any] = {
        "name": "limited", "manifest": "s3://old/images/", "state": "s3://state/ferry/limited", "checks": "length",
        "source": {"endpoint_url": limited.endpoint_url},
        "destination": {"uri": "s3://new/products/", "endpoint_url": limited.endpoint_url},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    keys = {"AWS_ACCESS_KEY_ID": limited.limited_key, "AWS_SECRET_ACCESS_KEY": limited.limited_secret}
    before = limited.client().list_objects_v2(Bucket="new")["KeyCount"]
    assert cli.run(["check", "job.yaml", "--json"], tmp_path, keys).expect(0).json["left_objects"] == 0
    assert limited.client().list_objects_v2(Bucket="new")["KeyCount"] == before
    assert "5 copied" in cli.run(["run", "job.yaml"], tmp_path, keys).expect(0).text
    cli.run(["verify", "job.yaml"], tmp_path, keys).expect(0)


def test_nothing_else_is_allowed(limited: S3Server) -> None:
    """What lies beside the prefixes is neither read nor written, and nothing is deleted at source or destination."""
    client = limited.client(limited=True)
    refused: dict[str, Callable[[], object]] = {
        "read beside the prefix": lambda: client.get_object(Bucket="new", Key="others/theirs.jpg"),
        "write beside the prefix": lambda: client.put_object(Bucket="new", Key="others/ours.jpg", Body=b""),
        "delete": lambda: client.delete_object(Bucket="new", Key="products/images/0.jpg"),
        "delete at the source": lambda: client.delete_object(Bucket="old", Key="images/0.jpg"),
        "write at the source": lambda: client.put_object(Bucket="old", Key="images/9.jpg", Body=b""),
        "write beside the state": lambda: client.put_object(Bucket="state", Key="others", Body=b""),
        "make a bucket": lambda: client.create_bucket(Bucket="fourth"),
    }
    assert {what: answer(ask) for what, ask in refused.items()} == dict.fromkeys(refused, "AccessDenied")


def answer(ask: Callable[[], object]) -> str:
    try:
        ask()
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "allowed"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_their_form(path: Path) -> None:
    """IAM's grammar, no wildcard but where an action knows no resource, and a name for every statement's reason."""
    document = json.loads(path.read_text())
    assert set(document) == {"Version", "Statement"}
    assert document["Version"] == "2012-10-17"
    for statement in document["Statement"]:
        assert set(statement) <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
        assert statement["Effect"] == "Allow"
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        assert all(re.fullmatch(r"[a-z0-9-]+:[A-Z][A-Za-z]+", action) for action in actions)
        if statement.get("Resource") == "*":
            assert set(actions) <= WITHOUT_RESOURCE, actions


# By the Service Authorization Reference these are granted for everything or not at all.
WITHOUT_RESOURCE = {
    "ecr:GetAuthorizationToken", "ecs:RegisterTaskDefinition", "ecs:DescribeTaskDefinition",
    "ecs:DeregisterTaskDefinition",
}  # fmt: skip
