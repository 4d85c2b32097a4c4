"""One contract for directories and buckets: what is put is found, and what is confirmed exists."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from demo.ports import free_ports
from demo.s3 import S3Server
from ferry.core.errors import Fatal, ObjectError, UserError
from ferry.core.memory_budget import PART_BYTES
from ferry.core.records import AGAIN, Again, Confirmed, ErrorClass
from ferry.storage import store as store_module
from ferry.storage.access import Access, S3Access
from ferry.storage.factory import open_store
from ferry.storage.object_info import Sent, md5_of_etag, multipart_etag
from ferry.storage.store import Store
from tests.support.helpers import access, make_body

pytestmark = pytest.mark.matrix

T = TypeVar("T")
MIB = 1024 * 1024
KEYS = [
    "plain.jpg",
    "a/b/c.jpg",
    "with space.jpg",
    " leading and trailing ",
    "plus+.jpg",
    "100%.jpg",
    "50%25off.jpg",
    "hash#1.jpg",
    "a?b=c&d.jpg",
    "nbsp\u00a0.jpg",
    "grün.jpg",
    "gru\u0308n.jpg",
    "日本/写真.jpg",
    "emoji😀.jpg",
    "quote'\".jpg",
    "semi;colon,=.jpg",
    "(1)[2]{3}.jpg",
    "~tilde*star|pipe^.jpg",
    ".hidden",
    "a..b",
]


LOOP = asyncio.new_event_loop()  # one for all, since a store with the HTTP client belongs to its loop


def wait(work: Awaitable[T]) -> T:
    async def run() -> T:
        return await work

    return LOOP.run_until_complete(run())


def opened(uri: str, known: Access, spool: Path) -> Iterator[Store]:
    store = open_store(uri, known, spool, create=True)
    yield store
    wait(store.close())


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "file":
        yield from opened(f"file://{tmp_path}/out%20dir/", Access(), tmp_path / "spool")
        return
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    yield from opened(f"s3://{bucket}/some/prefix/", access(s3), tmp_path / "spool")


@pytest.fixture
def open_it(tmp_path: Path) -> Iterator[Callable[[str, Access], Store]]:
    """Opens stores, and closes them at the end."""
    stores: list[Store] = []

    def go(uri: str, known: Access) -> Store:
        stores.append(open_store(uri, known, tmp_path))
        return stores[-1]

    yield go
    for store in stores:
        wait(store.close())


async def put(store: Store, key: str, data: bytes, spool: Path, *, create: bool = False) -> str | None:
    """Puts and confirms an object as a transfer does."""
    body = make_body(data, spool)
    try:
        sent = await store.put(key, body, {"Content-Type": "image/jpeg"}, create=create)
        await store.confirm(key, body, sent)
    finally:
        body.discard()
    return sent.etag


async def get(store: Store, key: str) -> bytes:
    body, found, _ = await store.get(key, max_bytes=1 << 40)
    assert body.size == found.size
    with body.buffer() as data:
        taken = bytes(data)
    assert (body.md5, body.sha256) == (hashlib.md5(taken).hexdigest(), hashlib.sha256(taken).hexdigest())
    body.discard()
    return taken


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_kept_byte_for_byte(key: str, store: Store, tmp_path: Path) -> None:
    """HEAD, GET and the listing find an object under exactly the key of its put."""

    async def work() -> None:
        await put(store, key, key.encode(), tmp_path)
        found = await store.head(key)
        assert found is not None
        assert (found.key, found.size) == (key, len(key.encode()))
        assert await get(store, key) == key.encode()

    wait(work())
    assert [found.key for page in store.list() for found in page] == [key]


def test_keys_at_the_server_are_those_of_the_job(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Another client (boto3) finds the same keys: nothing is encoded twice."""
    store = open_store(f"s3://{bucket}/p", access(s3), tmp_path)

    async def work() -> None:
        for key in KEYS:
            await put(store, key, key.encode(), tmp_path)

    wait(work())
    client = s3.client()
    listed = client.list_objects_v2(Bucket=bucket, Prefix="p/")["Contents"]
    assert {item["Key"] for item in listed} == {f"p/{key}" for key in KEYS}
    for key in KEYS:
        assert client.get_object(Bucket=bucket, Key=f"p/{key}")["Body"].read() == key.encode()


def test_keys_that_others_put_are_read(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Keys that boto3 wrote are listed and read."""
    client = s3.client()
    for key in KEYS:
        client.put_object(Bucket=bucket, Key=f"old/{key}", Body=key.encode())
    store = open_store(f"s3://{bucket}/old/", access(s3), tmp_path)
    assert {found.key for page in store.list() for found in page} == set(KEYS)
    for key in KEYS:
        assert wait(get(store, key)) == key.encode()


def test_nothing_stands_under_a_new_key(store: Store) -> None:
    """For a missing key, HEAD returns None and GET raises NOT_FOUND."""
    assert wait(store.head("none.jpg")) is None
    with pytest.raises(ObjectError) as caught:
        wait(store.get("none.jpg", max_bytes=9))
    assert caught.value.error_class is ErrorClass.NOT_FOUND
    assert [found for page in store.list() for found in page] == []


def test_a_second_put_replaces(store: Store, tmp_path: Path) -> None:
    """A second put replaces the first."""

    async def work() -> None:
        await put(store, "k", b"one", tmp_path)
        await put(store, "k", b"three", tmp_path)
        assert await get(store, "k") == b"three"

    wait(work())


@pytest.mark.parametrize("size", [3, PART_BYTES + 1])
def test_create_leaves_what_is_there(size: int, store: Store, tmp_path: Path) -> None:
    """With create an existing key raises EXISTS and keeps its bytes, whatever the new size."""
    data = b"x" * size

    async def work() -> None:
        await put(store, "new", data, tmp_path, create=True)
        assert await get(store, "new") == data
        await put(store, "k", b"one", tmp_path)
        with pytest.raises(ObjectError) as caught:
            await put(store, "k", data, tmp_path, create=True)
        assert caught.value.error_class is ErrorClass.EXISTS
        assert await get(store, "k") == b"one"

    wait(work())


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 20 * MIB + 7])
def test_sizes_around_the_spool(size: int, store: Store, tmp_path: Path) -> None:
    """Bodies of all sizes arrive whole and confirmed, and no spool file stays."""
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    spool = tmp_path / "mine"
    wait(arrives(store, data, spool, in_parts=False))
    assert not list(tmp_path.rglob("body-*"))


@pytest.mark.parametrize("more", [0, 1])
def test_one_request_up_to_a_size(
    more: int, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of ONE_PUT_BYTES is one request; a larger one is a multipart upload."""
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", 20 * MIB)
    for store in opened(f"s3://{bucket}/p/", access(s3), tmp_path / "spool"):
        wait(arrives(store, b"ab" * 10 * MIB + b"c" * more, tmp_path, in_parts=more == 1))


async def arrives(store: Store, data: bytes, spool: Path, *, in_parts: bool) -> None:
    etag = await put(store, "k", data, spool)
    assert hashlib.sha256(await get(store, "k")).digest() == hashlib.sha256(data).digest()
    if store.kind == "s3" and not in_parts:
        assert md5_of_etag(etag) == hashlib.md5(data).hexdigest()
    if store.kind == "s3" and in_parts:
        path = spool / "whole"
        path.write_bytes(data)
        assert (etag or "").strip('"') == multipart_etag(path, PART_BYTES)


def test_attributes_arrive(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Another client reads the Content-Type, Cache-Control and user metadata of the put."""
    store = open_store(f"s3://{bucket}", access(s3), tmp_path)
    attributes = {"Content-Type": "image/webp", "Cache-Control": "max-age=60", "sku": "A 1"}
    wait(store.put("k", make_body(b"x", tmp_path), attributes))
    head = s3.client().head_object(Bucket=bucket, Key="k")
    assert (head["ContentType"], head["CacheControl"]) == ("image/webp", "max-age=60")
    assert head["Metadata"] == {"sku": "A 1"}
    body, _, found = wait(store.get("k", max_bytes=9))
    assert body.data == b"x"
    assert found["Content-Type"] == "image/webp"


def test_a_body_over_the_limit_is_not_taken(store: Store, tmp_path: Path) -> None:
    """A body of max_bytes is read, one byte more raises TOO_LARGE."""
    wait(put(store, "k", b"12345", tmp_path))
    assert wait(store.get("k", max_bytes=5))[0].size == 5
    with pytest.raises(ObjectError) as caught:
        wait(store.get("k", max_bytes=4))
    assert caught.value.error_class is ErrorClass.TOO_LARGE


@pytest.mark.parametrize("other", [b"", b"123", b"123456"])
def test_confirm_finds_a_wrong_length(other: bytes, store: Store, tmp_path: Path) -> None:
    """An object of another length is not confirmed."""
    sent = wait(store.put("k", make_body(other, tmp_path), {}))
    with pytest.raises(ObjectError) as caught:
        wait(store.confirm("k", make_body(b"12345", tmp_path), sent))
    assert caught.value.error_class is ErrorClass.UPLOAD_UNCONFIRMED


@pytest.mark.parametrize("seen_before", [True, False])
def test_confirm_finds_other_bytes_of_the_same_length(
    seen_before: bool, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """An ETag that is another MD5 causes a read back, also at the first upload."""
    store = open_store(f"s3://{bucket}", access(s3), tmp_path)
    if seen_before:
        wait(put(store, "a", b"12345", tmp_path))
    sent = wait(store.put("k", make_body(b"12345", tmp_path), {}))
    with pytest.raises(ObjectError) as caught:
        wait(store.confirm("k", make_body(b"54321", tmp_path), sent))
    assert caught.value.error_class is ErrorClass.UPLOAD_UNCONFIRMED


def test_one_object_that_was_right_proves_nothing(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Eight objects are read back before a size confirms others; one with other bytes is found."""
    store = open_store(f"s3://{bucket}", access(s3), tmp_path)
    body, kms = make_body(b"12345", tmp_path), Sent('"' + "0" * 32 + '"')
    wait(store.put("0", body, {}))
    for _ in range(8):
        assert not store.read_back_policy.mismatch_found
        assert wait(store.confirm("0", body, kms)).method is Confirmed.READ_BACK
    assert wait(store.confirm("0", body, kms)).method is Confirmed.SIZE
    other = open_store(f"s3://{bucket}", access(s3), tmp_path)
    for _ in range(7):
        wait(other.confirm("0", body, kms))
    with pytest.raises(ObjectError, match="bytes differ"):
        wait(other.confirm("0", make_body(b"54321", tmp_path), kms))
    with pytest.raises(ObjectError, match="bytes differ"):  # from now on every object is read back
        wait(other.confirm("0", make_body(b"54321", tmp_path), kms))
    assert wait(other.confirm("0", body, kms)).method is Confirmed.READ_BACK


def test_confirm_misses_an_object_that_is_gone(store: Store, tmp_path: Path) -> None:
    """An upload whose object is missing is not confirmed."""
    with pytest.raises(ObjectError) as caught:
        wait(store.confirm("never", make_body(b"1", tmp_path), Sent(None)))
    assert caught.value.error_class is ErrorClass.UPLOAD_UNCONFIRMED


def test_a_listing_holds_each_object_once(store: Store, tmp_path: Path) -> None:
    """A listing of several pages has each object once, with its size."""
    wanted = {f"{n % 7}/{n:04d}.jpg" for n in range(1100)}

    async def work() -> None:
        gate = asyncio.Semaphore(32)

        async def one(key: str) -> None:
            async with gate:
                await store.put(key, make_body(b"x", tmp_path), {})

        await asyncio.gather(*(one(key) for key in wanted))

    wait(work())
    found = [item for page in store.list() for item in page]
    assert len(found) == len(wanted)
    assert {item.key for item in found} == wanted
    assert {item.size for item in found} == {1}


def test_a_prefix_that_begins_alike_is_another(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """The prefix `p` does not list `p2/`, nor anything above itself."""
    client = s3.client()
    for key in ("p/1", "p2/2", "q"):
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    for uri in (f"s3://{bucket}/p", f"s3://{bucket}/p/"):
        assert [f.key for page in open_store(uri, access(s3), tmp_path).list() for f in page] == ["1"]


Work = Callable[[Store, Path], Awaitable[object]]
WORKS: dict[str, Work] = {
    "put": lambda store, spool: store.put("k", make_body(b"x", spool), {}),
    "large put": lambda store, spool: store.put("k", make_body(b"x" * (9 * MIB), spool), {}),
    "create": lambda store, spool: store.put("k", make_body(b"x", spool), {}, create=True),
    "head": lambda store, _: store.head("k"),
}


@pytest.mark.parametrize("what", WORKS)
def test_refused_credentials_are_fatal(
    what: str, s3: S3Server, bucket: str, tmp_path: Path, open_it: Callable[[str, Access], Store]
) -> None:
    """Refused credentials at the destination are Fatal; the message names the setting and no secret."""
    unknown = S3Access(s3.endpoint_url, s3.region, keys=("AKIAUNKNOWN", "topsecret", None))
    store = open_it(f"s3://{bucket}/p", unknown)
    with pytest.raises(Fatal, match="credentials") as caught:
        wait(WORKS[what](store, tmp_path))
    for leak in ("AKIA", "topsecret", "<Error>", s3.endpoint_url):
        assert leak not in str(caught.value)


def test_refused_credentials_at_the_source_are_the_rows(
    s3: S3Server, bucket: str, open_it: Callable[[str, Access], Store]
) -> None:
    """Refused credentials at the source fail only the row."""
    unknown = S3Access(s3.endpoint_url, s3.region, keys=("AKIAUNKNOWN", "topsecret", None))
    with pytest.raises(ObjectError) as caught:
        wait(open_it(f"s3://{bucket}/p", unknown).get("k", max_bytes=9))
    assert caught.value.error_class is ErrorClass.FORBIDDEN
    with pytest.raises(Fatal):
        wait(open_it(f"s3://{bucket}/p", unknown).get("k", max_bytes=9, side="destination"))


def test_a_listing_that_is_refused_says_so(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A listing that is refused with 403 is not reported as a timeout."""
    unknown = S3Access(s3.endpoint_url, s3.region, keys=("AKIAUNKNOWN", "topsecret", None))
    with pytest.raises((Fatal, ObjectError)) as caught:
        list(open_store(f"s3://{bucket}/p", unknown, tmp_path).list())
    assert "in time" not in str(caught.value)


@pytest.mark.parametrize("what", WORKS)
def test_an_endpoint_that_is_not_there_may_be_tried_again(
    what: str, tmp_path: Path, open_it: Callable[[str, Access], Store]
) -> None:
    """A refused connection is a retryable store error, not a timeout."""
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    store = open_it("s3://bucket/p", S3Access(endpoint, "us-east-1", keys=("id", "secret", None)))
    with pytest.raises(ObjectError) as caught:
        wait(WORKS[what](store, tmp_path))
    assert AGAIN[caught.value.error_class] is Again.NOW
    assert caught.value.error_class is ErrorClass.STORE_ERROR
    assert caught.value.message == "the connection to the destination failed (ECONNREFUSED)"


def test_a_key_that_the_server_refuses_is_the_rows_failure(
    s3: S3Server, bucket: str, tmp_path: Path, open_it: Callable[[str, Access], Store]
) -> None:
    """A name that is too long for SeaweedFS is a store error of the row, not a timeout."""
    store = open_it(f"s3://{bucket}/p", access(s3))
    with pytest.raises(ObjectError) as caught:
        wait(put(store, "x" * 300, b"x", tmp_path))
    assert caught.value.error_class is ErrorClass.STORE_ERROR


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a")])
def test_a_file_in_the_way_is_the_rows_failure(first: str, second: str, tmp_path: Path) -> None:
    """In a directory, `a` and `a/b` cannot both exist: the second fails and the first stays."""
    store = open_store(f"file://{tmp_path}/out/", Access(), tmp_path, create=True)
    wait(put(store, first, b"one", tmp_path))
    with pytest.raises(ObjectError):
        wait(put(store, second, b"two", tmp_path))
    assert (tmp_path / "out" / first).read_bytes() == b"one"


@pytest.mark.parametrize("uri", ["ftp://h/x", "bucket/prefix", "https://h/x", "file:///does/not/exist/"])
def test_what_is_no_store_is_an_error_of_the_user(uri: str, tmp_path: Path) -> None:
    """Another scheme or a missing directory is a UserError."""
    with pytest.raises(UserError):
        open_store(uri, Access(), tmp_path)


def test_access_shows_no_secret() -> None:
    """The repr of Access shows no secret, since it may be logged."""
    assert "topsecret" not in repr(S3Access(keys=("id", "topsecret", "token")))


@pytest.mark.parametrize(
    ("etag", "md5"),
    [
        ('"d41d8cd98f00b204e9800998ecf8427e"', "d41d8cd98f00b204e9800998ecf8427e"),
        ("d41d8cd98f00b204e9800998ecf8427e", "d41d8cd98f00b204e9800998ecf8427e"),
        ('"d41d8cd98f00b204e9800998ecf8427e-2"', None),
        ('W/"d41d8cd98f00b204e9800998ecf8427e"', None),
        ('"d41d8cd98f00b204e9800998ecf8427"', None),
        ('"D41D8CD98F00B204E9800998ECF8427E"', "d41d8cd98f00b204e9800998ecf8427e"),
        ("d41d8cd98f00b204e9800998ecf8427e\n", None),
        ("", None),
        (None, None),
    ],
)
def test_which_etags_are_an_md5(etag: str | None, md5: str | None) -> None:
    """Only 32 hex digits, quoted or not, are an MD5; composite, weak and file ETags are not."""
    assert md5_of_etag(etag) == md5
