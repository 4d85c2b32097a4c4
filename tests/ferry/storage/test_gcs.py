"""Ferry's client for Google Cloud Storage where the service does otherwise than its emulators, or fails."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from ferry.core import KMS_KEY, TAGS, TIER
from ferry.core.body import Spooled, small_body
from ferry.core.errors import Fatal, FerryError, ObjectError, Refused
from ferry.core.memory_budget import PART_BYTES
from ferry.core.records import Confirmed, ErrorClass
from ferry.storage.confirmation import READ_FIRST, Comparison, ReadBackPolicy, compare_digests, confirm
from ferry.storage.errors import Meaning
from ferry.storage.gcs import Anonymous, Gcs
from ferry.storage.gcs.errors import code_of, gcs_error, meaning, parse_error, refusal
from ferry.storage.gcs.resources import attributes_of, info_of
from ferry.storage.object_info import ObjectInfo, Sent
from ferry.storage.provider import CannotCopy, Digests, Part, TooLargeAtOnce
from tests.servers.loopback import Answer
from tests.servers.odd_gcs import UNIT, Fault, OddGcs, error


def with_gcs(server: OddGcs, work: Callable[[Gcs], Awaitable[None]], bucket: str = "b") -> None:
    async def scenario() -> None:
        async with opened(server, bucket) as gcs:
            await work(gcs)

    asyncio.run(scenario())


@asynccontextmanager
async def opened(server: OddGcs, bucket: str = "b") -> AsyncIterator[Gcs]:
    gcs = Gcs(server.url, bucket, Anonymous(), timeout_s=60, read_s=30)
    try:
        yield gcs
    finally:
        await gcs.close()


def digests(data: bytes) -> Digests:
    body = small_body(data)
    return Digests(body.md5, body.sha256)


# --- errors

CREATE = "ferry@project.iam.gserviceaccount.com does not have storage.objects.create access to canary-secret."
ROWS = [
    (429, "", "", Meaning.BUSY),
    (429, "rateLimitExceeded", "", Meaning.BUSY),
    (403, "rateLimitExceeded", "", Meaning.BUSY),
    (403, "userRateLimitExceeded", "", Meaning.BUSY),
    (403, "quotaExceeded", "", Meaning.BUSY),
    (403, "dailyLimitExceeded", "", Meaning.BUSY),
    (302, "", "", Meaning.ELSEWHERE),
    (401, "authError", "Invalid Credentials", Meaning.CREDENTIALS),
    (403, "accountDisabled", "The billing account is disabled", Meaning.CREDENTIALS),
    (403, "UserProjectAccountProblem", "", Meaning.CREDENTIALS),
    (403, "forbidden", CREATE, Meaning.REFUSED),
    (401, "required", "Anonymous caller does not have storage.objects.create access", Meaning.REFUSED),
    (403, "retentionPolicyNotMet", "", Meaning.REFUSED),
    (404, "notFound", "The specified bucket does not exist.", Meaning.NO_BUCKET),
    (404, "notFound", "No such object: b/canary-secret", Meaning.NO_OBJECT),
    (404, "notFound", "Not Found", Meaning.OTHER),
    (412, "conditionNotMet", "", Meaning.OTHER),
    (400, "invalid", "", Meaning.OTHER),
    (503, "backendError", "", Meaning.OTHER),
]


@pytest.mark.parametrize(("status", "reason", "message", "expected"), ROWS)
def test_what_an_error_means(status: int, reason: str, message: str, expected: Meaning) -> None:
    """The table in the docstring of meaning(); no text of the response is in Ferry's message."""
    body = error(status, reason, message).body
    assert meaning(status, parse_error(body)) is expected
    for side in ("source", "destination"):
        assert "canary" not in str(gcs_error(status, body, side))


def test_a_missing_permission_is_named() -> None:
    """What the response calls the missing permission is shown, and nothing else of its text."""
    found = gcs_error(403, error(403, "forbidden", CREATE).body, "destination")
    assert isinstance(found, Refused)
    assert "HTTP 403 forbidden: storage.objects.create" in str(found)


OTHER_BODIES = [b"", b"<html>canary", b"[]", b'{"error": 1}', b'{"error": {"errors": 7}}', b"{" * 9999]


@pytest.mark.parametrize("body", OTHER_BODIES)
def test_other_bodies_are_no_error_documents(body: bytes) -> None:
    """Whatever a proxy sends instead, the status is judged."""
    assert parse_error(body) == ("", "", "")
    assert "canary" not in str(gcs_error(503, body, "destination"))


def test_a_reason_is_a_word() -> None:
    """Other text in its place is not shown."""
    assert code_of(parse_error(error(400, "canary <b>secret</b>", "").body)) == ""


def test_retry_after_is_passed_on() -> None:
    """503 and 429 say when to come back."""
    after = [{"Retry-After": "7"}, {"Retry-After": "9"}]
    busy = error(503, "backendError", "", after[0]), error(429, "rateLimitExceeded", "", after[1])
    with OddGcs(faults=[Fault("insert", answer) for answer in busy]) as server:

        async def go(gcs: Gcs) -> None:
            found = []
            for _ in range(2):
                with pytest.raises(ObjectError) as caught:
                    await gcs.put("a", b"x", digests(b"x"), {}, create=False)
                found.append((caught.value.error_class, caught.value.retry_after_s))
            assert found == [(ErrorClass.STORE_ERROR, 7.0), (ErrorClass.RATE_LIMITED, 9.0)]

        with_gcs(server, go)


async def failure(work: Awaitable[object]) -> FerryError:
    try:
        await work
    except FerryError as exc:
        return exc
    raise AssertionError("it did not fail")


def test_a_missing_bucket_is_not_a_missing_object() -> None:
    """At the destination a missing bucket ends the run, a missing object concerns its row; at the source both do."""

    async def go(gcs: Gcs) -> None:
        gone = [
            gcs.head("a", "destination"), gcs.get("a", "destination"), gcs.delete(["a"], "destination"),
            gcs.page("", "destination"), gcs.put("a", b"", digests(b""), {}, create=False),
            gcs.begin("a", {}, 1, md5=None, create=False), gcs.get("a", "destination", if_version="1"),
        ]  # fmt: skip
        for work in gone:
            assert isinstance(await failure(work), Fatal)
        source = await failure(gcs.head("a", "source"))
        assert isinstance(source, ObjectError)
        assert source.error_class is ErrorClass.NOT_FOUND

    async def there(gcs: Gcs) -> None:
        assert await gcs.head("a", "destination") is None
        await gcs.delete(["a"], "destination")
        for version in ("", "1"):
            found = await failure(gcs.get("a", "destination", if_version=version))
            assert isinstance(found, ObjectError)
            assert found.error_class is ErrorClass.NOT_FOUND

    with OddGcs() as server:
        with_gcs(server, go, "other")
        with_gcs(server, there)


def test_a_404_of_a_proxy_proves_nothing() -> None:
    """Without Google's words, the object is missing only if the bucket is there."""
    proxy = Answer(404, body=b"<html>Not Found</html>")
    with OddGcs(faults=[Fault("get", proxy, times=2), Fault("list", proxy)]) as server:

        async def go(gcs: Gcs) -> None:
            found = await failure(gcs.head("a", "destination"))
            assert isinstance(found, ObjectError)
            assert found.error_class is ErrorClass.STORE_ERROR
            assert await gcs.head("a", "destination") is None

        with_gcs(server, go)


NO_PAGES = [
    b"<html>",
    b"[]",
    b'{"items": 1}',
    b'{"items": [{"name": "a"}]}',
    b'{"items": [1]}',
    b'{"nextPageToken": 1}',
]


@pytest.mark.parametrize("body", NO_PAGES)
def test_a_listing_of_something_else(body: bytes) -> None:
    """What is not a page of the JSON API is an error, never an empty listing."""
    with OddGcs(faults=[Fault("list", Answer(200, body=body))]) as server:

        async def go(gcs: Gcs) -> None:
            found = await failure(gcs.page("", "source"))
            assert isinstance(found, ObjectError)
            assert found.error_class is ErrorClass.STORE_ERROR

        with_gcs(server, go)


def test_a_listing_that_is_cut_off() -> None:
    """It is an error, not a shorter listing."""
    with OddGcs(faults=[Fault("list", cut=True)]) as server:
        with_gcs(server, lambda gcs: _fails_truncated(gcs.page("", "destination")))


async def _fails_truncated(work: Awaitable[object]) -> None:
    found = await failure(work)
    assert isinstance(found, ObjectError)
    assert found.error_class in (ErrorClass.TRUNCATED, ErrorClass.STORE_ERROR)


def test_pages() -> None:
    """Each page ends within a row of keys that differ in little; the key to start after is dropped, once."""
    names = ["a", "a/", "a//", "a/b", "a0", "b", "ä", "\uffee", "\U0001f600"]
    with OddGcs(page_keys=2) as server:

        async def go(gcs: Gcs) -> None:
            for name in names:
                await gcs.put(name, b"", digests(b""), {}, create=False)
            for after in (None, *names):
                found: list[str] = []
                token = None
                while True:
                    page = await gcs.page("", "source", after=after, token=token)
                    found += [info.key for info in page.objects]
                    if (token := page.token) is None:
                        break
                assert found == (names if after is None else names[names.index(after) + 1 :])

        with_gcs(server, go)


# --- objects


def test_what_an_object_is_written_with() -> None:
    """Everything by Google's names; the encryption key is a parameter; tags it cannot hold."""
    given = {
        "Content-Type": "image/png", "Cache-Control": "no-cache", "Content-Language": "de", "Content-Encoding": "gzip",
        "Content-Disposition": "inline", TIER: "COLDLINE", KMS_KEY: "projects/p/keys/k", TAGS: "a=b", "sku": "grün",
        "Expires": "0",
    }  # fmt: skip
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            sent = await gcs.put("a", b"x", digests(b"x"), given, create=False)
            assert sent.lost == (TAGS, "Expires")

        with_gcs(server, go)
        kept = server.objects["b"]["a"].resource
        expected = {
            "contentType": "image/png", "cacheControl": "no-cache", "contentLanguage": "de", "contentEncoding": "gzip",
            "contentDisposition": "inline", "storageClass": "COLDLINE", "metadata": {"sku": "grün"},
        }  # fmt: skip
        assert {name: kept[name] for name in expected} == expected
        assert "kmsKeyName=projects%2Fp%2Fkeys%2Fk" in server.asked[0].target


@pytest.mark.parametrize("value", ["image/jpeg\r\nx: y", "bild/grün", "a\0"])
def test_a_content_type_that_no_header_can_hold(value: str) -> None:
    """It is left out and named: it would end a header of the request early."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            sent = await gcs.put("a", b"x", digests(b"x"), {"Content-Type": value}, create=False)
            assert sent.lost == ("Content-Type",)
            assert await gcs.begin("b", {"Content-Type": value}, 1, md5=None, create=False)

        with_gcs(server, go)
        assert "contentType" not in server.objects["b"]["a"].resource


@pytest.mark.parametrize("key", ["a\nb", "a\rb", ".", "..", ".well-known/acme-challenge/a", "k" * 1025, "ä" * 513])
def test_keys_that_google_does_not_allow(key: str) -> None:
    """Emulators do. The row fails for good, before any request."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            source = ObjectInfo("a", 1, "x", None, version="1")
            put = gcs.put(key, b"x", digests(b"x"), {}, create=False)
            for work in (put, gcs.begin(key, {}, 1, md5=None, create=False), gcs.copy(key, "b", source)):
                found = await failure(work)
                assert isinstance(found, ObjectError)
                assert found.error_class is ErrorClass.BAD_KEY
            await gcs.put("k" * 1024, b"x", digests(b"x"), {}, create=False)
            await gcs.put("a/./../.well-known/acme-challenge/", b"x", digests(b"x"), {}, create=False)

        with_gcs(server, go)


def test_an_answer_without_a_digest_confirms_nothing() -> None:
    """The bytes of such an object are read back; an ETag is opaque, whatever it looks like."""
    with OddGcs(composite=True) as server:

        async def go(gcs: Gcs) -> None:
            body = small_body(b"x")
            sent = await gcs.put("a", b"x", digests(b"x"), {}, create=False)
            assert sent.md5 is None
            assert compare_digests(sent, body.md5, body.sha256) is Comparison.UNKNOWN
            assert (await gcs.head("a", "source") or ObjectInfo("", 0, None, None)).crc32c

        with_gcs(server, go)


class Readable:
    """A bucket as confirmation needs it."""

    def __init__(self, gcs: Gcs) -> None:
        self._gcs = gcs

    async def head(self, key: str) -> ObjectInfo | None:
        return await self._gcs.head(key, "destination")

    async def digest(self, key: str, *, max_bytes: int, moved: Callable[[], object]) -> tuple[str, ObjectInfo]:
        got = await self._gcs.get(key, "destination")
        return small_body(await got.response.read()).sha256, got.info


def test_an_answer_that_lacks_the_usual_digest() -> None:
    """Where other answers had one, such an object is read back; where none has, its size may confirm it."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            body, store = small_body(b"x"), Readable(gcs)
            before, never = ReadBackPolicy(), ReadBackPolicy()
            before.matches = never.matches = READ_FIRST
            sent = await gcs.put("a", b"x", digests(b"x"), {}, create=False)
            assert (await confirm(store, before, "a", body, sent)).method is Confirmed.DIGEST
            server.composite = True
            sent = await gcs.put("a", b"x", digests(b"x"), {}, create=False)
            assert (await confirm(store, before, "a", body, sent)).method is Confirmed.READ_BACK
            assert (await confirm(store, never, "a", body, sent)).method is Confirmed.SIZE
            server.objects["b"]["a"].data = b"y"
            found = await failure(confirm(store, before, "a", body, sent))
            assert isinstance(found, ObjectError)
            assert found.error_class is ErrorClass.UPLOAD_UNCONFIRMED

        with_gcs(server, go)


def test_other_bytes_are_not_confirmed() -> None:
    """An answer with another MD5 than that of the bytes sent is a difference."""
    other = Answer(
        200, body=json.dumps({"md5Hash": "XUFAKrxLKna5cZ2REBfFkg==", "etag": "x", "generation": "1"}).encode()
    )
    with OddGcs(faults=[Fault("insert", other)]) as server:

        async def go(gcs: Gcs) -> None:
            sent = await gcs.put("a", b"x", digests(b"x"), {}, create=False)
            assert compare_digests(sent, *digests(b"x")) is Comparison.DIFFERENT

        with_gcs(server, go)


def test_a_lost_answer_to_a_creation() -> None:
    """The request goes again on another connection, and finds the object that the first one made."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            await gcs.put("before", b"", digests(b""), {}, create=True)  # so that a connection is kept
            server.faults.append(Fault("insert", lost=True))
            sent = await gcs.put("a", b"x", digests(b"x"), {}, create=True)
            assert (sent.exists, sent.sent_twice) == (True, True)

        with_gcs(server, go)
        assert server.objects["b"]["a"].data == b"x"


def test_a_proxy_with_a_limit() -> None:
    """A spooled body that is too large for it is sent in parts."""
    with OddGcs(faults=[Fault("insert", Answer(413), times=2)]) as server:

        async def go(gcs: Gcs) -> None:
            file = os.memfd_create("body")
            os.write(file, b"x")
            with pytest.raises(TooLargeAtOnce):
                await gcs.put("a", Spooled(file, 1), digests(b"x"), {}, create=False)
            assert isinstance(await failure(gcs.put("a", b"x", digests(b"x"), {}, create=False)), ObjectError)
            os.close(file)

        with_gcs(server, go)


def test_an_object_that_changes_between_two_requests() -> None:
    """Attributes of one version never come with the bytes of another."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            await gcs.put("a", b"old", digests(b"old"), {}, create=False)
            old = json.dumps(server.objects["b"]["a"].resource).encode()
            await gcs.put("a", b"new", digests(b"new"), {}, create=False)
            server.faults.append(Fault("get", Answer(200, body=old)))
            assert "was replaced while it was read" in str(await failure(gcs.get("a", "source")))

        with_gcs(server, go)


@pytest.mark.parametrize("headers", [{"Content-Encoding": "gzip"}, {}])
def test_bytes_that_are_not_the_stored_ones(headers: dict[str, str]) -> None:
    """Packed or unpacked on the way: an error, not an object."""
    with OddGcs(faults=[Fault("media", Answer(200, headers, b"xyz"[: 1 if headers else 2]))]) as server:

        async def go(gcs: Gcs) -> None:
            await gcs.put("a", b"x", digests(b"x"), {}, create=False)
            assert "other bytes" in str(await failure(gcs.get("a", "source")))

        with_gcs(server, go)


# --- copies


def test_a_copy_in_several_requests() -> None:
    """A large copy is asked for until it is done; each request names the source's generation."""
    data = os.urandom(1000)
    with OddGcs(rewrites=300) as server:

        async def go(gcs: Gcs) -> None:
            await gcs.put("a", data, digests(data), {"sku": "7"}, create=False)
            (info,) = (await gcs.page("", "source")).objects
            assert (await gcs.copy("c/d", "b", info)).md5 == info.md5

        with_gcs(server, go)
        assert server.objects["b"]["c/d"].data == data
        assert server.count("rewrite") == 4
        assert all("ifSourceGenerationMatch=17" in one.target for one in server.asked if one.operation == "rewrite")


def test_what_is_not_copied() -> None:
    """A version that is gone, another digest, no progress: the caller reads and writes. Busy: it tries again."""
    stuck = Answer(200, body=b'{"done": false, "rewriteToken": "t", "totalBytesRewritten": "7"}')
    other = Answer(200, body=b'{"done": true, "resource": {"md5Hash": "XUFAKrxLKna5cZ2REBfFkg=="}}')
    crc32c = Answer(200, body=b'{"done": true, "resource": {"crc32c": "AAAAAA=="}}')
    faults = [Fault("rewrite", stuck, times=2), Fault("rewrite", other), Fault("rewrite", crc32c)]
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            await gcs.put("a", b"x", digests(b"x"), {}, create=False)
            (info,) = (await gcs.page("", "source")).objects
            unlisted = ObjectInfo("a", 1, "other", None)
            for source in (ObjectInfo("a", 1, None, None, version="7"), unlisted, ObjectInfo("none", 1, "x", None)):
                with pytest.raises(CannotCopy):
                    await gcs.copy("c", "b", source)
            server.faults += faults
            for _ in range(3):
                with pytest.raises(CannotCopy):
                    await gcs.copy("c", "b", info)
            server.faults.append(Fault("rewrite", error(503, "backendError", "")))
            assert isinstance(await failure(gcs.copy("c", "b", info)), ObjectError)
            assert await gcs.copy("c", "b", ObjectInfo("a", 1, info.etag, None))

        with_gcs(server, go)


# --- preflight

REFUSED = "refuses listing with these credentials (HTTP 403 forbidden). "
REFUSALS = [
    (403, "forbidden", CREATE, f"{REFUSED}They need the permission `storage.objects.create`"),
    (403, "forbidden", "", f"{REFUSED}Check the bucket's policy"),
    (
        401,
        "authError",
        "",
        "refuses these credentials (HTTP 401 authError). Check them and the project's billing",
    ),
    (404, "notFound", "", "does not exist. Create it, or correct its address in the job"),
    (400, "invalid", "", "answered HTTP 400 invalid to the check of listing. Check its address and its settings"),
    (200, "", "", None),
]


@pytest.mark.parametrize(("status", "reason", "message", "expected"), REFUSALS)
def test_what_the_preflight_says(status: int, reason: str, message: str, expected: str | None) -> None:
    """The table in the docstring of refusal()."""
    assert refusal(status, parse_error(error(status, reason, message).body), "listing") == expected


def test_the_preflight_names_what_is_missing() -> None:
    """Writing is tried by a session that is ended, reading by a listing."""
    read = CREATE.replace("create", "list")
    with OddGcs(
        faults=[Fault("begin", error(403, "forbidden", CREATE)), Fault("list", error(403, "forbidden", read))]
    ) as server:

        async def go(gcs: Gcs) -> None:
            assert "`storage.objects.create`" in (await gcs.refusal("p", writing=True) or "")
            assert "`storage.objects.list`" in (await gcs.refusal("p", writing=False) or "")
            assert await gcs.refusal("p", writing=True) is None
            assert await gcs.refusal("p", writing=False) is None

        with_gcs(server, go)
        assert (server.sessions, server.objects["b"], server.count("abort")) == ({}, {}, 1)


# --- uploads in parts

PART = 4 * UNIT
DATA = os.urandom(3 * PART + 5)
WHOLE = small_body(DATA)


def part(number: int) -> Spooled:
    """A part of DATA, from 0 on, as a spool file."""
    return SPOOL.slice(number * PART, min(PART, len(DATA) - number * PART))


def _spool() -> Spooled:
    file = os.memfd_create("body")
    os.write(file, DATA)
    return Spooled(file, len(DATA))


SPOOL = _spool()


async def put_part(gcs: Gcs, upload: str, number: int) -> Part:
    return await gcs.put_part("a", upload, number + 1, part(number), digests(b""), number * PART)


async def begun(gcs: Gcs, *, create: bool = False) -> str:
    upload = await gcs.begin("a", {"sku": "7"}, len(DATA), md5=WHOLE.md5, create=create)
    assert upload is not None
    return upload


async def complete(gcs: Gcs, upload: str, *, create: bool = False) -> Sent:
    return await gcs.complete("a", upload, [], WHOLE, {TAGS: "a=b"}, create=create)


def test_a_large_body_in_parts() -> None:
    """In order, with attributes, confirmed by the MD5 of the whole; the session's host is never asked."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            upload = await begun(gcs)
            for number in range(4):
                found = await put_part(gcs, upload, number)
                assert (found.number, found.size) == (number + 1, len(part(number)))
            sent = await complete(gcs, upload)
            assert compare_digests(sent, WHOLE.md5, WHOLE.sha256) is Comparison.EQUAL
            assert (sent.in_parts, sent.lost) == (True, (TAGS,))

        with_gcs(server, go)
        stored = server.objects["b"]["a"]
        assert (stored.data, stored.resource["metadata"]) == (DATA, {"sku": "7"})
        assert server.count("part") == 4


@pytest.mark.parametrize("right", [True, False])
def test_a_body_whose_md5_is_known_at_its_end(right: bool) -> None:
    """Google is told with the last part, and makes no object of other bytes."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            upload = await gcs.begin("a", {}, len(DATA), md5=None, create=False)
            assert upload is not None
            for number in range(4):
                md5 = (WHOLE.md5 if right else "0" * 32) if number == 3 else None
                sending = gcs.put_part("a", upload, number + 1, part(number), Digests("", "", md5), number * PART)
                if right or number < 3:
                    await sending
                else:
                    assert isinstance(await failure(sending), ObjectError)
            if right:
                sent = await complete(gcs, upload)
                assert compare_digests(sent, WHOLE.md5, WHOLE.sha256) is Comparison.EQUAL

        with_gcs(server, go)
        assert list(server.objects["b"]) == (["a"] if right else [])


def test_a_later_run_continues_an_upload() -> None:
    """It asks what Google has, and sends the rest."""
    with OddGcs() as server:
        left = ""

        async def first(gcs: Gcs) -> None:
            nonlocal left
            left = await begun(gcs)
            assert await gcs.parts("a", left) == []
            await put_part(gcs, left, 0)

        async def second(gcs: Gcs) -> None:
            (there,) = await gcs.parts("a", left) or []
            assert there == Part(1, PART, "")
            for number in (1, 2, 3):
                await put_part(gcs, left, number)
            assert (await complete(gcs, left)).md5 == WHOLE.md5
            assert await gcs.parts("a", left) == [Part(1, len(DATA), "")]

        with_gcs(server, first)
        with_gcs(server, second)
        assert server.objects["b"]["a"].data == DATA


@pytest.mark.parametrize("number", [1, 3])
def test_a_lost_answer_to_a_part(number: int) -> None:
    """The part is not sent blindly again: Google is asked what it has."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            upload = await begun(gcs)
            for each in range(4):
                if each == number:
                    server.faults.append(Fault("part", lost=True))
                    assert isinstance(await failure(put_part(gcs, upload, each)), ObjectError)
                await put_part(gcs, upload, each)
            assert (await complete(gcs, upload)).md5 == WHOLE.md5

        with_gcs(server, go)
        assert server.objects["b"]["a"].data == DATA
        sent = [len(one.body) for one in server.asked if one.operation == "part"]
        assert (sent.count(0), sum(sent)) == (1, len(DATA))


def test_a_part_of_which_little_is_kept() -> None:
    """The rest of it is sent again, from where Google stands; without progress it is an error."""
    with OddGcs(takes=UNIT) as server:

        async def go(gcs: Gcs) -> None:
            upload = await begun(gcs)
            for number in range(4):
                await put_part(gcs, upload, number)
            assert (await complete(gcs, upload)).md5 == WHOLE.md5
            server.takes = UNIT - 1
            assert "kept none" in str(await failure(put_part(gcs, await begun(gcs), 0)))

        with_gcs(server, go)
        assert server.objects["b"]["a"].data == DATA


def test_a_session_that_is_gone() -> None:
    """Over, or forgotten: an error of this object, and no parts."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            upload = await begun(gcs)
            await put_part(gcs, upload, 0)
            server.sessions.clear()
            assert await gcs.parts("a", f"{upload}x") is None
            for work in (put_part(gcs, upload, 1), complete(gcs, upload), put_part(gcs, await begun(gcs), 2)):
                found = await failure(work)
                assert isinstance(found, ObjectError)
                assert found.error_class is ErrorClass.STORE_ERROR

        with_gcs(server, go)


def test_the_answer_to_the_last_part_is_lost_and_the_session_too() -> None:
    """Then the object itself decides: it has the size and the MD5, or it is another one."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            for create in (False, True):
                upload = await begun(gcs)
                for number in range(3):
                    await put_part(gcs, upload, number)
                server.faults.append(Fault("part", lost=True))
                await failure(put_part(gcs, upload, 3))
                server.sessions.clear()
                assert (await complete(gcs, upload)).md5 == WHOLE.md5
                other = DATA[::-1]  # of the same size
                await gcs.put("a", other, digests(other), {}, create=False)
                if create:
                    assert (await complete(gcs, upload, create=True)).exists
                else:
                    assert isinstance(await failure(complete(gcs, upload)), ObjectError)

        with_gcs(server, go)


def test_a_wrong_digest_of_the_whole() -> None:
    """Google compares it at the end, and makes no object."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            upload = await gcs.begin("a", {}, len(DATA), md5=digests(b"x").md5, create=False)
            assert upload is not None
            for number in range(3):
                await put_part(gcs, upload, number)
            found = await failure(put_part(gcs, upload, 3))
            assert isinstance(found, ObjectError)
            assert "canary" not in str(found)

        with_gcs(server, go)
        assert server.objects["b"] == {}


def test_an_upload_creates_once() -> None:
    """The key may be taken before the upload, or while it is under way."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            upload = await begun(gcs, create=True)
            for number in range(3):
                await put_part(gcs, upload, number)
            await gcs.put("a", b"theirs", digests(b"theirs"), {}, create=True)
            await put_part(gcs, upload, 3)
            assert (await complete(gcs, upload, create=True)).exists
            assert await gcs.begin("a", {}, len(DATA), md5=None, create=True) is None

        with_gcs(server, go)
        assert server.objects["b"]["a"].data == b"theirs"


@pytest.mark.parametrize("location", ["", "https://x", "https://x/a b?upload_id=1", "https://x/ä?upload_id=1"])
def test_a_session_without_an_address(location: str) -> None:
    """An error, and no request to anything else."""
    with OddGcs(faults=[Fault("begin", Answer(200, headers={"Location": location}))]) as server:

        async def go(gcs: Gcs) -> None:
            assert "returned no address" in str(await failure(gcs.begin("a", {}, 1, md5=None, create=False)))

        with_gcs(server, go)


@pytest.mark.parametrize(
    "upload",
    [
        "an-id-of-s3",
        "x:/upload/storage/v1/b/b/o?uploadType=resumable&upload_id=1",
        "5:/storage/v1/b/b/o/a?uploadType=resumable&upload_id=1",
        "5:/upload/storage/v1/b/other/o?uploadType=resumable&upload_id=1",
        "5:/upload/storage/v1/b/b/o?uploadType=media&name=a",
        "5:/upload/storage/v1/b/b/o?uploadType=media&uploadType=resumable&upload_id=1",
    ],
)
def test_an_id_that_is_of_no_session_is_sent_nowhere(upload: str) -> None:
    """IDs of earlier runs are read from the state: of another provider, or forged, they are of no upload."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            assert await gcs.parts("a", upload) is None
            await gcs.abort("a", upload)

        with_gcs(server, go)
        assert (server.count("part"), server.count("abort"), len(server.asked)) == (0, 0, 0)


def test_an_upload_is_aborted() -> None:
    """Nothing is left of it; one that is gone is not an error."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            upload = await begun(gcs)
            await put_part(gcs, upload, 0)
            await gcs.abort("a", upload)
            await gcs.abort("a", upload)
            assert await gcs.parts("a", upload) is None
            assert [each async for each in gcs.uploads("")] == []

        with_gcs(server, go)
        assert server.sessions == {}


def test_part_sizes() -> None:
    """The number of parts has no limit, the size of an object has."""
    with OddGcs() as server:

        async def go(gcs: Gcs) -> None:
            assert (gcs.part_bytes(1), gcs.part_bytes(5 << 40)) == (PART_BYTES, 525 << 20)
            found = await failure(asyncio.to_thread(gcs.part_bytes, (5 << 40) + 1))
            assert isinstance(found, ObjectError)
            assert found.error_class is ErrorClass.TOO_LARGE

        with_gcs(server, go)


def test_metadata_named_like_an_attribute_of_ferry() -> None:
    """Its name has one colon more then, so that it says nothing of the key, the tags or the redirect."""
    found = attributes_of({"metadata": {":kms-key": "k", ":redirect": "/", "Expires": "0", "a:b": "1"}})
    assert found == {"::kms-key": "k", "::redirect": "/", "expires": "0", "a:b": "1"}


@pytest.mark.parametrize("name", ["MULTI_REGIONAL", "REGIONAL", "DURABLE_REDUCED_AVAILABILITY", "STANDARD"])
def test_older_classes_are_the_standard_one(name: str) -> None:
    """Google gives none of them to new objects, and calls them equivalent."""
    assert attributes_of({"storageClass": name}) == {TIER: "STANDARD"}
    assert info_of({"name": "k", "size": "1", "storageClass": name}, "source").tier == "STANDARD"
