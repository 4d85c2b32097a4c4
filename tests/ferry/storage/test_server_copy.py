"""Server-side copies between buckets of one server with `checks: none`, and what is read instead."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from demo.images import make_image
from demo.s3 import S3Server
from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass, Outcome, Row, Status
from ferry.state import parquet
from ferry.state.files import DirectoryState
from ferry.state.plan_file import ChunkRef
from ferry.storage.access import AzureAccess, GoogleAccess
from ferry.storage.factory import open_store
from ferry.storage.object_info import ObjectInfo
from ferry.storage.provider import CannotCopy
from ferry.storage.s3 import S3, StaticCredentials
from ferry.transfer.chunk import run_chunk
from tests.servers.odd_s3 import OddS3
from tests.support.helpers import (
    access,
    directory_state,
    engine,
    latest,
    make_job,
    make_row,
    read_access,
    row_id,
    run,
    stored,
)

pytestmark = pytest.mark.matrix

IMAGE = make_image("jpeg", 3)
MD5 = hashlib.md5(IMAGE).hexdigest()


def put(s3: S3Server, bucket: str, key: str = "old/a.jpg", body: bytes = IMAGE, **given: Any) -> Row:
    """Puts an object at the source and returns its row as a listing has it."""
    etag = s3.client().put_object(Bucket=bucket, Key=key, Body=body, **given)["ETag"]
    return make_row(1, f"s3://{bucket}/{key}", key="a.jpg", size=len(body), etag=etag)


def move(
    s3: S3Server, bucket: str, folder: Path, row: Row, *, reader: bool = False, **settings: Any
) -> tuple[Outcome, DirectoryState]:
    """Transfers one row from old/ to new/ in one bucket."""
    state = directory_state(folder)
    columns = {name: [getattr(row, name)] for name in parquet.CHUNK_SCHEMA.names}
    import pyarrow as pa

    data = parquet.to_bytes(pa.Table.from_pydict(columns, schema=parquet.CHUNK_SCHEMA))
    digest = parquet.digest_of(data)
    state.write(f"chunks/{digest}.parquet", data)
    ref = ChunkRef(f"chunks/{digest}.parquet", digest, 1, 0, "base", 1, existing="head")
    job = make_job(
        **{
            "manifest": f"s3://{bucket}/old/", "source": {}, "checks": "none",
            "destination": f"s3://{bucket}/new/", **settings,
        }
    )  # fmt: skip
    source = read_access(s3) if reader else access(s3)
    with engine(job, state, access(s3), source=source) as runtime:
        run_chunk(runtime, ref)
    return latest(state)[row_id(1)], state


def was_read(outcome: Outcome) -> bool:
    """Returns whether Ferry read the bytes: only then the outcome has their SHA-256."""
    return outcome.sha256 is not None


def test_the_server_copies(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """The server copies bytes, type and metadata; Ferry reads nothing and the ledger has both ETags' MD5."""
    row = put(s3, bucket, ContentType="image/jpeg", CacheControl="max-age=60", Metadata={"owner": "somebody"})
    outcome, _ = move(s3, bucket, tmp_path, row)
    assert outcome.status is Status.COPIED
    assert not was_read(outcome)
    assert (outcome.size, outcome.md5, outcome.requests) == (len(IMAGE), MD5, 1)
    there = s3.client().get_object(Bucket=bucket, Key="new/a.jpg")
    assert there["Body"].read() == IMAGE
    assert (there["ContentType"], there["CacheControl"]) == ("image/jpeg", "max-age=60")
    assert there["Metadata"]["owner"] == "somebody"


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({"checks": "length"}, {}),
        ({"checks": "image"}, {}),
        ({"on_existing": "skip"}, {}),
        ({"on_existing": "fail"}, {}),
        ({"metadata": {"moved": "yes"}}, {}),
        ({"cache_control": "no-store"}, {}),
        ({}, {"md5": MD5}),
        ({}, {"sha256": hashlib.sha256(IMAGE).hexdigest()}),
        ({}, {"content_type": "image/x-own"}),
        ({}, {"etag": None}),
        ({}, {"size": None}),
        ({"reader": True}, {}),  # the destination's credentials may not read the source
    ],
)
def test_what_needs_the_bytes_is_read(
    settings: dict[str, Any], row: dict[str, Any], s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Checks, manifest digests, job attributes and keys that must not be replaced need the bytes."""
    given = dict(settings)
    if "metadata" in given or "cache_control" in given:
        given = {"destination": {"uri": f"s3://{bucket}/new/", **given}}
    outcome, _ = move(s3, bucket, tmp_path, put(s3, bucket)._replace(**row), **given)
    assert outcome.status is Status.COPIED
    assert was_read(outcome)
    assert stored(s3, bucket, "new/") == {"new/a.jpg": IMAGE}


@pytest.mark.parametrize("copies", ["whole", "without attributes"])
def test_a_store_whose_copies_lose_attributes_is_not_asked(copies: Any, tmp_path: Path) -> None:
    """A trial shows it, before the first object: then Ferry reads and writes, and the attributes are kept."""
    with OddS3(copies=copies) as server:
        server.make_bucket("new")
        server.put("old", "a.jpg", IMAGE, {"Content-Type": "image/jpeg", "x-amz-meta-sku": "A 1"})
        job = make_job(manifest="s3://old/", source={}, checks="none", destination="s3://new/")
        state = directory_state(tmp_path)
        run(job, state, access(server))
        (outcome,) = latest(state).values()
        assert was_read(outcome) is (copies != "whole")
        assert set(server.objects["new"]) == {"a.jpg"}
        assert server.objects["new"]["a.jpg"].headers["x-amz-meta-sku"] == "A 1"


def test_an_object_that_changed_since_it_was_listed_is_read(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """The server copies only the listed version; a changed object is read."""
    row = put(s3, bucket)
    other = make_image("png", 4)
    put(s3, bucket, body=other)
    outcome, _ = move(s3, bucket, tmp_path, row)
    assert was_read(outcome)
    assert stored(s3, bucket, "new/") == {"new/a.jpg": other}


def test_an_object_that_is_gone(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A missing source object fails the row with not_found."""
    row = put(s3, bucket)
    s3.client().delete_object(Bucket=bucket, Key="old/a.jpg")
    outcome, _ = move(s3, bucket, tmp_path, row)
    assert (outcome.status, outcome.error_class) == (Status.FAILED, ErrorClass.NOT_FOUND)


@pytest.mark.parametrize("key", ["old/grün.jpg", "old/a b.jpg", "old/a+b.jpg", "old/100%.jpg"])
def test_keys_that_clients_write_differently(s3: S3Server, key: str, bucket: str, tmp_path: Path) -> None:
    """An object whose key clients encode differently is copied by the server as any other."""
    outcome, _ = move(s3, bucket, tmp_path, put(s3, bucket, key))
    assert outcome.status is Status.COPIED
    assert not was_read(outcome)
    assert stored(s3, bucket, "new/") == {"new/a.jpg": IMAGE}


def test_what_stands_under_the_key_is_compared(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """With skip-same, an object with other bytes is replaced."""
    row = put(s3, bucket)
    s3.client().put_object(Bucket=bucket, Key="new/a.jpg", Body=b"another object")
    outcome, _ = move(s3, bucket, tmp_path, row)
    assert outcome.status is Status.COPIED
    assert stored(s3, bucket, "new/") == {"new/a.jpg": IMAGE}


def answers(status: int, body: str) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        assert request.headers["x-amz-copy-source"] == "/from/a/b.jpg"
        assert request.headers["x-amz-copy-source-if-match"] == '"abc"'
        return web.Response(status=status, text=body, content_type="application/xml")

    return handle


def ask(handle: Callable[[web.Request], Any]) -> str | None:
    """Returns what S3.copy returns for this handler."""

    async def go() -> str | None:
        app = web.Application()
        app.router.add_put("/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        http = S3(
            f"http://127.0.0.1:{port}", "to", "us-east-1", StaticCredentials(None), timeout_s=5, read_s=5, connections=2
        )
        try:
            return (await http.copy("a.jpg", "from", ObjectInfo("a/b.jpg", 1, "abc", None))).etag
        finally:
            await http.close()
            await runner.cleanup()

    return asyncio.run(go())


@pytest.mark.parametrize("quote", ["&quot;", "&#34;", '"', ""])
def test_the_copy_s_etag(quote: str) -> None:
    """The copy's ETag is found in each form that stores write."""
    result = f"<?xml version='1.0'?>\n<CopyObjectResult xmlns='x'><ETag>{quote}{MD5}{quote}</ETag></CopyObjectResult>"
    assert ask(answers(200, result)) == MD5


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "<Error><Code>InternalError</Code></Error>"),  # S3 may send an error under 200
        (200, ""),
        (404, "<Error><Code>NoSuchKey</Code></Error>"),
        (403, "<Error><Code>AccessDenied</Code></Error>"),
        (412, "<Error><Code>PreconditionFailed</Code></Error>"),
        (501, "<Error><Code>NotImplemented</Code></Error>"),
    ],
)
def test_a_server_that_does_not_copy(status: int, body: str) -> None:
    """If the server does not copy, CannotCopy is raised so that the bytes are read and written."""
    with pytest.raises(CannotCopy):
        ask(answers(status, body))


def test_a_server_that_asks_to_slow_down() -> None:
    """A SlowDown response to a copy is RATE_LIMITED."""
    with pytest.raises(ObjectError) as caught:
        ask(answers(503, "<Error><Code>SlowDown</Code></Error>"))
    assert caught.value.error_class is ErrorClass.RATE_LIMITED


@pytest.mark.parametrize(
    ("settings", "bucket_start"),
    [({"checks": "none"}, 256), ({"checks": "image"}, 32), ({"checks": "none", "concurrency": 20}, 20)],
)
def test_only_what_the_server_copies_begins_with_many_at_once(
    settings: dict[str, Any], bucket_start: int, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Only the buckets of a server-side copy start with a higher concurrency."""
    job = make_job(manifest=f"s3://{bucket}/old/", source={}, destination=f"s3://{bucket}/new/", **settings)
    with engine(job, directory_state(tmp_path), access(s3)) as runtime:
        at = {name: runtime.limiter.host(name).snapshot().limit for name in (bucket, "destination", "img.example")}
    assert at == {bucket: bucket_start, "destination": bucket_start, "img.example": min(32, bucket_start)}


def test_another_servers_objects_are_read_at_the_usual_pace(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """With other credentials at the source, the concurrency starts as usual."""
    job = make_job(manifest=f"s3://{bucket}/old/", source={}, destination=f"s3://{bucket}/new/", checks="none")
    with engine(job, directory_state(tmp_path), access(s3), source=read_access(s3)) as runtime:
        assert runtime.limiter.host("destination").snapshot().limit == 32


@pytest.mark.parametrize(
    ("source", "destination", "copies"),
    [
        ("az://shop/old/", "az://shop/new/", True),
        ("az://other/old/", "az://shop/new/", False),
        ("gs://old/", "gs://new/", True),
        ("file:///tmp/", "gs://new/", False),
    ],
)
def test_which_server_could_copy(source: str, destination: str, copies: bool, tmp_path: Path) -> None:
    """Only one that has both buckets, at Azure in one account, and that the same credentials open."""
    kind = AzureAccess if destination.startswith("az:") else GoogleAccess
    here, there = open_store(destination, kind(), tmp_path), open_store(source, kind(), tmp_path)
    assert here.can_copy_from(there) is copies
    assert not here.can_copy_from(open_store(source, kind(anonymous=True), tmp_path))
