"""Ferry's client for S3: what it writes boto3 reads alike, and the other way round."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from demo.s3 import S3Server
from ferry.core.body import Body, small_body
from ferry.core.errors import Fatal, ObjectError
from ferry.core.memory_budget import SPOOL_OVER_BYTES
from ferry.core.records import ErrorClass
from ferry.http import low_speed
from ferry.storage.access import S3Access
from ferry.storage.factory import open_store
from ferry.storage.object_info import ObjectInfo, Sent
from ferry.storage.provider import CannotCopy, Page
from ferry.storage.s3 import S3, Boto3Credentials, Keys, StaticCredentials, xml
from ferry.storage.s3.attributes import attribute_headers
from ferry.storage.store import Store
from tests.servers.odd_s3 import OddS3
from tests.support.helpers import access, make_body

ATTRIBUTES = {
    "Content-Type": "image/jpeg",
    "Cache-Control": "max-age=60, public",
    "Content-Encoding": "gzip",
    "Content-Language": "de",
    "Content-Disposition": "inline",
    "owner": "someone else",
}
KEY = "a/b-c_d~e=f/(1).jpg"


def with_store(
    s3: S3Server, bucket: str, tmp_path: Path, test: Callable[[Store], Awaitable[None]], prefix: str = "p"
) -> None:
    async def go() -> None:
        store = open_store(f"s3://{bucket}/{prefix}/", access(s3), tmp_path)
        try:
            await test(store)
        finally:
            await store.close()

    asyncio.run(go())


def test_boto3_reads_what_ferry_writes(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """The same bytes, ETag, type, encoding and user metadata, and the other way round."""
    data = b"\0\xffbytes" * 1000
    other = s3.client()

    async def test(store: Store) -> None:
        etag = (await store.put(KEY, small_body(data), ATTRIBUTES)).etag
        assert etag is not None
        assert etag.strip('"') == hashlib.md5(data).hexdigest()

    with_store(s3, bucket, tmp_path, test)
    there: dict[str, Any] = {**other.get_object(Bucket=bucket, Key=f"p/{KEY}")}
    assert there["Body"].read() == data
    assert there["Metadata"] == {"owner": "someone else"}
    named = {name.replace("-", ""): value for name, value in ATTRIBUTES.items() if name != "owner"}
    assert {name: there[name] for name in named} == named
    theirs: dict[str, Any] = {"Body": data, "Metadata": {"owner": "someone else"}, **named}
    other.put_object(Bucket=bucket, Key="p/theirs", **theirs)

    async def back(store: Store) -> None:
        body, found, attributes = await store.get("theirs", max_bytes=1 << 20)
        head = await store.head("theirs")
        assert (body.data, found.size, attributes) == (data, len(data), ATTRIBUTES)
        assert head == found

    with_store(s3, bucket, tmp_path, back)


@pytest.mark.parametrize("key", ["grün.jpg", "a b.jpg", "100%.jpg", "x#1", "a+b", "*", "?", "&", "~", "e\u0301", "🦊"])
def test_a_key_arrives_as_it_is(key: str, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Keys that clients encode in different ways arrive under the same key, also below such a prefix."""

    async def test(store: Store) -> None:
        await store.put(key, small_body(b"x"), {})
        body, found, _ = await store.get(key, max_bytes=9)
        assert (body.data, found.key) == (b"x", key)

    with_store(s3, bucket, tmp_path, test, "p q")
    assert [item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]] == [f"p q/{key}"]


@pytest.mark.parametrize("key", ["a//b", "./a", "a/..", "..", "a/./b", "/a", "a/", "a\nb", "\x01"])
def test_no_key_is_changed_on_its_way(key: str, tmp_path: Path) -> None:
    """Empty segments, `.`, `..` and control characters are in the request as they are in the key."""
    with OddS3() as server:
        server.make_bucket("b")

        async def go() -> None:
            store = open_store("s3://b/", access(server), tmp_path)
            await store.put(key, small_body(b"x"), {})
            assert (await store.get(key, max_bytes=9))[0].data == b"x"
            assert await store.head(key) is not None
            await store.close()

        asyncio.run(go())
        assert list(server.objects["b"]) == [key]


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("", ""),
        ("a  b", "a  b"),
        ("grün", "=?UTF-8?B?Z3LDvG4=?="),
        ("a\r\nx: y", "a x: y"),
        ("\x01", "=?UTF-8?B?AQ==?="),
        (" me\t", "me"),
        ("\u2028", "=?UTF-8?B?4oCo?="),
        ("gr\udcfcn", "=?UTF-8?B?Z3LDvG4=?="),
    ],
)
def test_values_that_a_header_cannot_hold_are_words(value: str, sent: str) -> None:
    """Metadata is ASCII; anything else is encoded as S3 itself does, so that no value ends a line of the request."""
    assert attribute_headers({"Owner": value}) == {"x-amz-meta-owner": sent}


def test_the_standard_headers_are_text() -> None:
    """A browser reads Content-Disposition, and knows no words of RFC 2047 there."""
    disposition = 'attachment; filename="é.jpg"'
    assert attribute_headers({"Content-Disposition": disposition}) == {"content-disposition": disposition}


@pytest.mark.parametrize("value", ["a  b   c", "grün"])
def test_any_value_is_signed_as_the_store_reads_it(value: str, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A store that checks signatures accepts the request."""

    async def test(store: Store) -> None:
        await store.put("k", small_body(b"x"), {"owner": value})

    with_store(s3, bucket, tmp_path, test)
    assert s3.client().head_object(Bucket=bucket, Key="p/k")["Metadata"].keys() == {"owner"}


@pytest.mark.parametrize(
    "etag",
    [
        "x\r\nx-amz-tagging: a=b",
        'x"\r\ncontent-length: 0\r\n\r\nDELETE /bucket/other HTTP/1.1\r\nhost: internal\r\n\r\n',
        "x\ny",
        "x\0",
        "ü",
        "",
    ],
)
def test_a_list_puts_no_lines_into_a_copys_request(etag: str) -> None:
    """An invalid ETag from a manifest is never sent, so it cannot inject header lines."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1 << 16))
        writer.close()

    async def go() -> None:
        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        http = S3(
            f"http://127.0.0.1:{port}",
            "bucket",
            "r",
            StaticCredentials(Keys("id", "secret")),
            timeout_s=5,
            read_s=5,
            connections=2,
        )
        try:
            with pytest.raises(CannotCopy):
                await http.copy("new/a.jpg", "bucket", ObjectInfo("old/a.jpg", 1, etag, None))
        finally:
            await http.close()
            server.close()

    asyncio.run(go())
    assert heard == []


def test_create_does_not_replace(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """With create (If-None-Match) the second write is refused, and the first object's bytes stay."""

    async def test(store: Store) -> None:
        await store.put("k", small_body(b"one"), {})
        with pytest.raises(ObjectError) as caught:
            await store.put("k", small_body(b"two"), {}, create=True)
        assert caught.value.error_class is ErrorClass.EXISTS
        body, _, _ = await store.get("k", max_bytes=9)
        assert body.data == b"one"

    with_store(s3, bucket, tmp_path, test)


def test_a_body_that_changed_on_its_way_is_not_confirmed(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A body that changes on its way is refused by the store or not confirmed."""

    async def test(store: Store) -> None:
        told = small_body(b"what was hashed")
        changed = Body(15, told.md5, told.sha256, b"what was sent!!")

        async def upload() -> None:
            await store.confirm("k", changed, await store.put("k", changed, {}))

        with pytest.raises((ObjectError, Fatal)):
            await upload()

    with_store(s3, bucket, tmp_path, test)


# --- against a server of the test's own

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def bucket_at(answer: Answer, tmp_path: Path) -> AsyncIterator[Store]:
    server = web.Server(answer)  # type: ignore[arg-type]
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    known = S3Access(f"http://127.0.0.1:{port}", "us-east-1", keys=("id", "secret", None))
    store = open_store("s3://b/p", known, tmp_path, timeout_s=2)
    try:
        yield store
    finally:
        await store.close()
        await runner.cleanup()


def error(status: int, code: str, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>", headers=headers)

    return answer


@pytest.mark.parametrize(
    ("status", "code", "headers", "at_destination", "at_source"),
    [
        (
            503,
            "SlowDown",
            {"Retry-After": "7"},
            (ErrorClass.RATE_LIMITED, 503, 7.0),
            (ErrorClass.RATE_LIMITED, 503, 7.0),
        ),
        (429, "", {}, (ErrorClass.RATE_LIMITED, 429, None), (ErrorClass.RATE_LIMITED, 429, None)),
        (500, "InternalError", {}, (ErrorClass.STORE_ERROR, 500, None), (ErrorClass.STORE_ERROR, 500, None)),
        (403, "AccessDenied", {}, None, (ErrorClass.FORBIDDEN, 403, None)),
        (404, "NoSuchBucket", {}, None, (ErrorClass.NOT_FOUND, 404, None)),
        (507, "XMinioStorageFull", {}, None, (ErrorClass.STORE_ERROR, 507, None)),
    ],
)
def test_what_a_store_answers(
    status: int, code: str, headers: dict[str, str], at_destination: object, at_source: object, tmp_path: Path
) -> None:
    """Status and S3 code decide the error class, and Retry-After is kept. None stands for Fatal."""

    async def go() -> None:
        async with bucket_at(error(status, code, **headers), tmp_path) as store:
            for expected, work in (
                (at_destination, lambda: store.put("k", small_body(b"x"), {})),
                (at_source, lambda: store.get("k", max_bytes=9)),
            ):
                with pytest.raises((ObjectError, Fatal)) as caught:
                    await work()
                end = caught.value
                if isinstance(end, ObjectError):
                    assert (end.error_class, end.status_code, end.retry_after_s) == expected
                else:
                    assert expected is None

    asyncio.run(go())


def test_a_key_that_is_locked_is_the_rows_failure(tmp_path: Path) -> None:
    """If the bucket accepts other keys, a refused key fails only its row."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(f"{request.method} {request.path_qs}")
        await request.read()
        if request.method == "PUT" and request.path.endswith("locked"):
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        if request.method == "POST":
            return web.Response(text="<X><UploadId>u1</UploadId></X>")
        return web.Response(headers={"ETag": '"e"'})

    async def go() -> None:
        async with bucket_at(answer, tmp_path) as store:
            with pytest.raises(ObjectError, match="refuses to write this key") as caught:
                await store.put("locked", small_body(b"x"), {})
            assert (caught.value.error_class, caught.value.status_code) == (ErrorClass.FORBIDDEN, 403)
            assert asked[-1].startswith("DELETE")
            assert asked[-1].endswith("?uploadId=u1")
            await store.put("free", small_body(b"x"), {})

    asyncio.run(go())


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (403, "InvalidAccessKeyId"), (400, "ExpiredToken")]
)
def test_refusals_of_all_keys_end_the_run(status: int, code: str, tmp_path: Path) -> None:
    """Refused credentials end the run and fail no row."""

    async def go() -> None:
        async with bucket_at(error(status, code), tmp_path) as store:
            with pytest.raises(Fatal, match=code):
                await store.put("k", small_body(b"x"), {})

    asyncio.run(go())


def test_keys_refused_one_after_the_other_end_the_run(tmp_path: Path) -> None:
    """After 50 refused keys in a row the run ends; a success resets the count."""
    refuses = True

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.method == "PUT" and refuses:
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        return web.Response(text="<X><UploadId>u1</UploadId></X>", headers={"ETag": '"e"'})

    async def refused(store: Store, times: int) -> None:
        for number in range(times):
            with pytest.raises(ObjectError):
                await store.put(str(number), small_body(b"x"), {})

    async def go() -> None:
        nonlocal refuses
        async with bucket_at(answer, tmp_path) as store:
            await refused(store, 50)
            refuses = False
            await store.put("k", small_body(b"x"), {})
            refuses = True
            await refused(store, 50)
            with pytest.raises(Fatal):
                await store.put("k", small_body(b"x"), {})

    asyncio.run(go())


def test_a_redirect_is_not_followed_with_the_signature(tmp_path: Path) -> None:
    """A redirect is an error, and no signed request is sent to its target."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        await request.read()
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async def go() -> None:
        async with bucket_at(answer, tmp_path) as store:
            with pytest.raises((ObjectError, Fatal)):
                await store.put("k", small_body(b"x"), {})

    asyncio.run(go())
    assert "/elsewhere" not in asked
    assert len(asked) <= 2


@pytest.mark.parametrize("cut", ["header", "body"])
def test_a_connection_that_breaks_is_an_error_of_the_row(cut: str, tmp_path: Path) -> None:
    """A connection that breaks before or during the response fails the row."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        if cut == "header":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"short")
        assert request.transport is not None
        request.transport.abort()
        return response

    async def go() -> None:
        async with bucket_at(answer, tmp_path) as store:
            with pytest.raises(ObjectError) as caught:
                await store.get("k", max_bytes=999)
            assert caught.value.error_class in (ErrorClass.TRUNCATED, ErrorClass.STORE_ERROR)

    asyncio.run(go())


def test_an_answer_that_does_not_come_is_a_timeout(tmp_path: Path) -> None:
    """A missing response is a timeout that names the destination."""

    async def go() -> None:
        over = asyncio.Event()  # closing the server waits for its answers

        async def answer(request: web.Request) -> web.StreamResponse:
            await over.wait()
            return web.Response()

        async with bucket_at(answer, tmp_path) as store:
            with pytest.raises(ObjectError, match="the destination did not answer in time"):
                await store.put("k", small_body(b"x"), {})
            over.set()

    asyncio.run(go())


BIG = b"x" * (SPOOL_OVER_BYTES + 1)


async def whole(request: web.Request) -> bytes:
    """Returns a body of any size; aiohttp's own `read` has a limit."""
    return b"".join([piece async for piece in request.content.iter_any()])


def test_a_large_body_that_is_refused_as_one_goes_up_in_parts(tmp_path: Path) -> None:
    """A body that is refused with 413 is sent as a multipart upload."""
    asked: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append((request.method, request.query_string))
        if request.method == "PUT" and not request.query_string:
            return web.Response(status=413)
        body = await whole(request)
        if "uploads" in request.query_string:
            return web.Response(
                text="<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            )
        if request.method == "PUT":
            return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        return web.Response(text="<CompleteMultipartUploadResult><ETag>e-2</ETag></CompleteMultipartUploadResult>")

    async def go() -> None:
        async with bucket_at(answer, tmp_path) as store:
            sent = await store.put("k", make_body(BIG, tmp_path), {})
            assert (sent.etag, sent.in_parts) == ("e-2", True)

    asyncio.run(go())
    assert asked[0] == ("PUT", "")
    assert sum("partNumber" in query for _, query in asked) == 2


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(503, "SlowDown", ErrorClass.RATE_LIMITED), (500, "", ErrorClass.STORE_ERROR), (403, "InvalidAccessKeyId", None)],
)
def test_what_a_store_answers_before_it_has_a_large_body(
    status: int, code: str, expected: ErrorClass | None, tmp_path: Path
) -> None:
    """A response before the end of a large body decides the error, and the next request is unaffected."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "PUT" and request.content_length != 1:
            await request.content.readany()
            response = web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>")
            await response.prepare(request)
            await response.write_eof()
            await asyncio.sleep(0.3)  # a server that stops reading, and closes
            return response
        await whole(request)
        return web.Response(headers={"ETag": '"e"'})

    async def go() -> None:
        async with bucket_at(answer, tmp_path) as store:
            body = make_body(BIG * 4, tmp_path)
            with pytest.raises((ObjectError, Fatal)) as caught:
                await store.put("k", body, {})
            if isinstance(caught.value, ObjectError):
                assert caught.value.error_class is expected
            else:
                assert expected is None
            assert await store.put("k", small_body(b"x"), {}) == Sent('"e"')

    asyncio.run(go())


def test_a_large_body_that_breaks_once_is_sent_again_from_its_beginning(tmp_path: Path) -> None:
    """After a kept connection breaks, the second request sends the whole body."""
    came: list[bytes] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        if request.content_length != 1 and not came:
            came.append(await request.content.readany())
            request.transport.abort()
            return web.Response()
        came.append(await whole(request))
        return web.Response(headers={"ETag": '"e"'})

    async def go() -> None:
        async with bucket_at(answer, tmp_path) as store:
            await store.put("k", make_body(BIG, tmp_path), {})

    asyncio.run(go())
    assert came[-1] == BIG
    assert len(came) == 2


def test_a_spool_file_that_was_cut_is_the_disks_trouble(tmp_path: Path) -> None:
    """A truncated spool file is Fatal and is named, so that no partial body looks uploaded."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await whole(request)
        return web.Response(headers={"ETag": '"e"'})

    async def go() -> None:
        async with bucket_at(answer, tmp_path) as store:
            body = make_body(BIG, tmp_path)
            assert body.path is not None
            os.truncate(body.path, 1_500_000)
            with pytest.raises(Fatal, match="spool file"):
                await store.put("k", body, {})

    asyncio.run(go())


class Chain:
    """boto3 credentials that expire when the test says so."""

    def __init__(self) -> None:
        self.number, self.old, self.fails = 1, False, False

    def refresh_needed(self) -> bool:
        return self.old

    def get_frozen_credentials(self) -> Any:
        from botocore.credentials import ReadOnlyCredentials

        if self.fails:
            raise RuntimeError("metadata service")
        self.number += self.old
        self.old = False
        return ReadOnlyCredentials(f"id{self.number}", "secret", "token")


def test_credentials_that_expire_are_renewed() -> None:
    """Expired keys are renewed once for all callers; until then current() returns the same object."""

    async def go() -> None:
        chain = Chain()
        credentials = Boto3Credentials(lambda: chain)
        first = await credentials.current()
        assert first == Keys("id1", "secret", "token")
        assert await credentials.current() is first
        chain.old = True
        renewed = await asyncio.gather(*(credentials.current() for _ in range(9)))
        assert set(renewed) == {Keys("id2", "secret", "token")}
        assert chain.number == 2
        chain.old = chain.fails = True
        with pytest.raises(ObjectError, match="could not be renewed"):
            await credentials.current()

    asyncio.run(go())


# --- connections and request lines


def test_heads_use_one_connection(tmp_path: Path) -> None:
    """A HEAD for each object must not cost a connection each."""

    async def go() -> None:
        store = open_store("s3://b/", access(server), tmp_path)
        for n in range(5):
            await store.put(str(n), small_body(b"x"), {})
            found = await store.head(str(n))
            assert found is not None
            assert found.size == 1
        assert store.connections_opened == 1
        await store.close()

    with OddS3() as server:
        server.make_bucket("b")
        asyncio.run(go())


@pytest.mark.parametrize("later", [False, True])
def test_a_body_after_a_head_is_no_answer(later: bool) -> None:
    """A server that sends a body after a HEAD, at once or later: its bytes are never read as another response."""
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nETag: wrong\r\n\r\nwrong!!"

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            if later:
                await writer.drain()
                await asyncio.sleep(0.05)
            writer.write(body)
        else:
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "right"\r\n\r\nright')
        await writer.drain()
        await reader.read(1)
        writer.close()

    async def go() -> None:
        async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            http = S3(address, "b", "r", StaticCredentials(None), timeout_s=5, read_s=5, connections=2)
            assert await http.head("k", "destination") is not None
            await asyncio.sleep(0.2)
            got = await http.get("k", "destination")
            assert (got.info.etag, await got.response.read()) == ('"right"', b"right")
            await http.close()

    asyncio.run(go())


def test_what_a_request_says(tmp_path: Path) -> None:
    """A POST without a body has a length (RFC 9110 section 8.6), and an IPv6 address is in brackets (RFC 3986)."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def go() -> None:
        async with await asyncio.start_server(listen, "::1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            keys = StaticCredentials(Keys("id", "secret"))
            http = S3(f"http://[::1]:{port}", "b", "r", keys, timeout_s=5, read_s=5, connections=2)
            with pytest.raises(ObjectError):  # the response has no ID
                await http.begin("k", {}, 1, md5=None, create=False)
            await http.close()
            assert f"\r\nhost: [::1]:{port}\r\n".encode() in heard[0]
            assert b"\r\ncontent-length: 0\r\n" in heard[0]

    asyncio.run(go())


def test_a_copy_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers a long copy with 200 at once and blanks until it is done: that is no body that comes too slowly."""
    monkeypatch.setattr(low_speed, "WINDOW_S", 0.3)
    done = b'<CopyObjectResult><ETag>"e"</ETag></CopyObjectResult>'

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(done) + 10))
        for _ in range(10):
            writer.write(b" ")
            await asyncio.sleep(0.15)
        writer.write(done)
        await writer.drain()
        writer.close()

    async def go() -> None:
        async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            http = S3(address, "b", "r", StaticCredentials(None), timeout_s=9, read_s=0.3, connections=2)
            assert await http.copy("new", "b", ObjectInfo("old", 1 << 30, '"e"', None)) == Sent("e")
            await http.close()

    asyncio.run(go())


# --- pages of a listing

CONTENTS = (
    "<Contents><Key>a%01+b%2B&amp;</Key><LastModified>2026-12-01T06:07:08.000Z</LastModified>"
    "<ETag>&quot;0123456789abcdef0123456789abcdef&quot;</ETag><Size>3</Size><Owner><ID>x</ID></Owner></Contents>"
    "<Contents><Key>c</Key><Size>0</Size><ETag /></Contents>"
)
NOT_LISTED = "<Contents><Key>b</Key><Size>1</Size></Contents>"
PAGE = (
    f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{CONTENTS}<EncodingType>url</EncodingType>'
    "<IsTruncated>true</IsTruncated><NextContinuationToken>n&amp;m</NextContinuationToken></ListBucketResult>"
)


@pytest.mark.parametrize(
    "page",
    [
        PAGE,
        '\n<?xml version="1.0" encoding="UTF-8"?>\n' + PAGE.replace("><", ">\n  <"),
        PAGE.replace("</", "</s3:").replace("<", "<s3:").replace("<s3:/s3:", "</s3:").replace("xmlns", "xmlns:s3"),
        PAGE.replace("<Contents>", '<Contents xml:lang="en">'),
        PAGE.replace("<Key>", '<Key xml:lang="en">'),
        PAGE.replace("<Size>3", "<Size><![CDATA[3]]>"),
        PAGE.replace("<Owner>", f"<!-- {NOT_LISTED} --><Owner>"),
        PAGE.replace("<Owner>", f"<?odd {NOT_LISTED} ?><Owner>"),
        PAGE.replace("<ID>x", f"<ID><![CDATA[{NOT_LISTED}]]>"),
        PAGE.replace("<Owner><ID>x", "<Owner><ID>Contents>"),
    ],
)
def test_a_page_is_the_same_however_it_is_written(page: str) -> None:
    """Blanks, prefixes, attributes, comments, CDATA and instructions change nothing: no object is left out or added."""
    at = datetime(2026, 12, 1, 6, 7, 8, tzinfo=UTC)
    etag = '"0123456789abcdef0123456789abcdef"'
    found = xml.parse_page(page.encode(), "source")
    assert found == Page([ObjectInfo("a\x01 b+&", 3, etag, at), ObjectInfo("c", 0, None, None)], "n&m")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<Key>c</Key>", ""),
        ("<Size>0</Size>", ""),
        ("<Size>3", "<Size>x"),
        ("%01", "%FF"),
        ("2026-12", "2026-13"),
    ],
)
def test_an_object_that_cannot_be_read_ends_the_listing(old: str, new: str) -> None:
    with pytest.raises(ObjectError, match="an object without a valid key or size"):
        xml.parse_page(PAGE.replace(old, new).encode(), "source")
