"""Attributes at an S3 store: how they are written, read and copied, and what becomes of those that it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ferry.core import KMS_KEY, REDIRECT, TAGS, TIER, ErrorClass, Fatal, ObjectError, UserError
from ferry.core.progress import Progress
from ferry.core.records import Outcome, Status
from ferry.reconcile import verify
from ferry.storage import store as store_module
from ferry.storage.attribute_refusals import refused_attribute
from ferry.storage.factory import open_store
from ferry.storage.object_info import Sent
from ferry.storage.preflight import run_preflight
from ferry.storage.s3.attributes import attribute_headers, attributes_of
from ferry.storage.store import Store
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import (
    IMAGE,
    access,
    by_key,
    counts_of,
    directory_state,
    make_body,
    make_job,
    run,
    write_list,
)

EVERYTHING = {
    "Content-Type": "image/webp", "Cache-Control": "no-cache", "Content-Disposition": "inline",
    "Content-Language": "de", "Expires": "Wed, 01 Dec 2027 16:00:00 GMT",
    TIER: "STANDARD_IA", TAGS: "team=shop&a+b=c%2Bd", REDIRECT: "/elsewhere", "sku": "A 1", "expires": "never",
}  # fmt: skip
REFUSED_TAGS: dict[str, Any] = {"status": 403, "code": "AccessDenied", "header": "x-amz-tagging"}
REFUSED_CLASS: dict[str, Any] = {"status": 400, "code": "InvalidStorageClass", "header": "x-amz-storage-class"}
WRITES = ("PutObject", "CreateMultipartUpload", "CopyObject")


def with_store(server: OddS3, folder: Path, go: Callable[[Store], Awaitable[Any]]) -> Any:
    server.make_bucket("b")

    async def work() -> Any:
        store = open_store("s3://b/p/", access(server), folder)
        try:
            return await go(store)
        finally:
            await store.close()

    return asyncio.run(work())


def test_headers_and_back() -> None:
    """Each attribute has its header, and its name again; the metadata `expires` is not the header Expires."""
    headers = attribute_headers({**EVERYTHING, KMS_KEY: "k"})
    assert headers["expires"] == "Wed, 01 Dec 2027 16:00:00 GMT"
    assert headers["x-amz-meta-expires"] == "never"
    assert (headers["x-amz-storage-class"], headers["x-amz-website-redirect-location"]) == ("STANDARD_IA", "/elsewhere")
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "k"
    shown = {name: value for name, value in EVERYTHING.items() if name != TAGS}
    del headers["x-amz-tagging"]
    assert attributes_of(headers) == shown
    assert "x-amz-server-side-encryption" not in attribute_headers(EVERYTHING)
    assert attributes_of(attribute_headers({"n": "k\u00e4se"})) == {"n": "k\u00e4se"}


@pytest.mark.parametrize("parts", [False, True], ids=["one-request", "in-parts"])
def test_everything_arrives_and_is_read(parts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All attributes are those of the object, in one request or in parts; its tags cost one more to read."""
    if parts:
        monkeypatch.setattr(store_module, "ONE_PUT_BYTES", 0)
    with OddS3() as server:

        async def go(store: Store) -> tuple[Sent, dict[str, str]]:
            body = make_body(bytes(9 << 20), tmp_path)
            sent = await store.put("k", body, EVERYTHING)
            return sent, (await store.get("k", max_bytes=10 << 20, tags=True))[2]

        sent, attributes = with_store(server, tmp_path, go)
        assert sent.in_parts == parts
        assert sent.lost == ()
        assert attributes == EVERYTHING
        assert server.requests["GetObjectTagging"] == 1


def test_an_object_without_tags_costs_no_request(tmp_path: Path) -> None:
    """Tags are asked for only if the object has some, and only where they are wanted."""
    with OddS3() as server:
        server.put("b", "p/plain", b"x")
        server.put("b", "p/tagged", b"x", {"x-amz-tagging": "a=1"})

        async def go(store: Store) -> list[dict[str, str]]:
            return [
                (await store.get(key, max_bytes=9, tags=tags))[2]
                for key, tags in (("plain", True), ("tagged", False), ("tagged", True))
            ]

        found = with_store(server, tmp_path, go)
        assert [attributes.get(TAGS) for attributes in found] == [None, "", "a=1"]
        assert server.requests["GetObjectTagging"] == 1


@pytest.mark.parametrize("status", [403, 405, 501])
def test_tags_that_the_source_does_not_show(status: int, tmp_path: Path) -> None:
    """They are known to be there, and not asked for again."""
    fault = Fault("status", ("GetObjectTagging",), status=status, code="AccessDenied")
    with OddS3(faults=[fault]) as server:
        server.put("b", "p/k", b"x", {"x-amz-tagging": "a=1"})

        async def go(store: Store) -> list[str | None]:
            return [(await store.get("k", max_bytes=9, tags=True))[2].get(TAGS) for _ in range(3)]

        assert with_store(server, tmp_path, go) == ["", "", ""]
        assert server.requests["GetObjectTagging"] == 1


def test_an_error_of_the_tags_fails_the_read(tmp_path: Path) -> None:
    """After a 500 nothing is known of the tags, so the object is read again."""
    with OddS3(faults=[Fault("status", ("GetObjectTagging",), status=500, code="InternalError", times=1)]) as server:
        server.put("b", "p/k", b"x", {"x-amz-tagging": "a=1"})

        async def go(store: Store) -> str | None:
            with pytest.raises(ObjectError):
                await store.get("k", max_bytes=9, tags=True)
            return (await store.get("k", max_bytes=9, tags=True))[2].get(TAGS)

        assert with_store(server, tmp_path, go) == "a=1"


@pytest.mark.parametrize(
    ("refusal", "lost"), [(REFUSED_TAGS, TAGS), (REFUSED_CLASS, TIER), ({**REFUSED_TAGS, "status": 501}, TAGS)]
)
@pytest.mark.parametrize("parts", [False, True], ids=["one-request", "in-parts"])
def test_what_a_store_refuses_is_left_out(
    refusal: dict[str, Any], lost: str, parts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is written without it, and later ones are not sent twice: two requests for the first, then one."""
    if parts:
        monkeypatch.setattr(store_module, "ONE_PUT_BYTES", 0)
    with OddS3(checksums=True, faults=[Fault("status", WRITES, **refusal)]) as server:

        async def go(store: Store) -> list[Sent]:
            return [await store.put(key, make_body(bytes(9 << 20), tmp_path), EVERYTHING) for key in ("k", "l")]

        sent = with_store(server, tmp_path, go)
        assert [each.lost for each in sent] == [(lost,), (lost,)]
        about_checksums = not parts and refusal["status"] != 403  # a first 400 or 501 may be about them
        assert server.requests["CreateMultipartUpload" if parts else "PutObject"] == 3 + about_checksums
        assert server.objects["b"]["p/l"].headers["Expires"] == EVERYTHING["Expires"]


def test_another_class_is_tried(tmp_path: Path) -> None:
    """A refusal of one class says nothing of others."""
    with OddS3(checksums=True, faults=[Fault("status", WRITES, **REFUSED_CLASS, times=2)]) as server:

        async def go(store: Store) -> list[tuple[str, ...]]:
            tiers = ("GOLD", "SILVER", "GOLD")
            return [(await store.put(tier, make_body(b"x", tmp_path), {TIER: tier})).lost for tier in tiers]

        assert with_store(server, tmp_path, go) == [(TIER,), (), (TIER,)]


def test_a_refused_key_is_not_blamed_on_tags(tmp_path: Path) -> None:
    """Where the key is refused without tags, too, nothing is learned of tags."""
    with OddS3(faults=[Fault("status", ("PutObject",), status=403, code="AccessDenied", key="locked")]) as server:

        async def go(store: Store) -> Sent:
            with pytest.raises(ObjectError) as caught:
                await store.put("locked", make_body(b"x", tmp_path), {TAGS: "a=1"})
            assert caught.value.error_class is ErrorClass.FORBIDDEN
            assert store.without_refused({TAGS: "a=1"}) == ({TAGS: "a=1"}, ())
            return await store.put("free", make_body(b"x", tmp_path), {TAGS: "a=1"})

        assert with_store(server, tmp_path, go).lost == ()


@pytest.mark.parametrize(("refusal", "error"), [(REFUSED_CLASS, "lost_attribute"), (REFUSED_TAGS, "forbidden")])
def test_nothing_is_written_that_may_lose_nothing(refusal: dict[str, Any], error: str, tmp_path: Path) -> None:
    """Without `may_lose` the store is not asked again, and has no object."""
    with OddS3(checksums=True, faults=[Fault("status", WRITES, **refusal)]) as server:

        async def go(store: Store) -> str:
            with pytest.raises(ObjectError) as caught:
                await store.put("k", make_body(b"x", tmp_path), EVERYTHING, may_lose=False)
            return caught.value.error_class

        assert with_store(server, tmp_path, go) == error
        assert server.stored("b") == {}


@pytest.mark.parametrize(
    ("attributes", "refusal", "words"),
    [
        ({TIER: "GOLD"}, REFUSED_CLASS, "refuses objects with the attributes that the job sets: storage_class (HTTP 4"),
        ({TAGS: "a=1", "sku": "1"}, REFUSED_TAGS, "that the job sets: tags, metadata.sku (HTTP 403 AccessDenied)"),
        ({KMS_KEY: "k"}, {"status": 400, "code": "KMS.NotFoundException", "header": "x-amz-server-side-encryption"},
         "that the job sets: encryption (HTTP 400 KMS"),
    ],
)  # fmt: skip
def test_the_preflight_tries_what_the_job_sets(attributes: dict[str, str], refusal: dict[str, Any], words: str) -> None:
    """A class, key or tags that the bucket refuses end the job before anything moves, and leave no upload."""
    with OddS3(faults=[Fault("status", WRITES, **refusal)]) as server:
        server.make_bucket("b")
        with pytest.raises(UserError) as caught:
            run_preflight("s3://b/p/", access(server), attributes=attributes)
        assert words in str(caught.value)
        run_preflight("s3://b/p/", access(server), attributes={"Expires": "0"})
        run_preflight("s3://b/p/", access(server))
        assert (server.objects, server.uploads) == ({"b": {}}, {})


# --- whole runs


class Library:
    """Objects below `old/` of a bucket, and runs that copy them to `new/`."""

    def __init__(self, server: OddS3, folder: Path) -> None:
        self.server, self.state = server, directory_state(folder)
        server.make_bucket("b")

    def put(self, name: str, data: bytes = IMAGE, **headers: str) -> None:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        self.server.put("b", f"old/{name}", data, {"Content-Type": "image/jpeg", **named})

    def run(self, **given: Any) -> dict[str, Outcome]:
        job = make_job(**{"manifest": "s3://b/old/", "source": {}, "destination": "s3://b/new/", **given})
        run(job, self.state, access(self.server))
        return by_key(self.state)

    def copy(self, name: str) -> dict[str, str]:
        return self.server.objects["b"][f"new/{name}"].headers


def asked(server: OddS3, operation: str) -> int:
    """Returns the number of requests, without those of the trial of copies."""
    return sum(op == operation and ".ferry-trial-" not in path for op, path, _ in server.log)


@pytest.mark.parametrize("checks", ["image", "none"])
def test_a_class_goes_with_the_object(checks: str, tmp_path: Path) -> None:
    """The class of the source, or of the job, and the job's key, whether Ferry writes or the server copies."""
    with OddS3() as server:
        library = Library(server, tmp_path)
        library.put("a.jpg", x_amz_storage_class="GLACIER_IR", x_amz_tagging="a=1", Expires="0")
        library.put("b.jpg")
        library.run(checks=checks, name="kept")
        assert asked(server, "CopyObject") == (2 if checks == "none" else 0)
        lower = {name.lower(): value for name, value in library.copy("a.jpg").items()}
        assert (lower["x-amz-storage-class"], lower["x-amz-tagging"], lower["expires"]) == ("GLACIER_IR", "a=1", "0")
        assert "x-amz-storage-class" not in library.copy("b.jpg")
        library.state = directory_state(tmp_path, "second")
        setting = {"uri": "s3://b/all/", "storage_class": "STANDARD_IA", "encryption": {"kms_key": "k"}}
        library.run(checks=checks, destination=setting)
        for name in ("a.jpg", "b.jpg"):
            headers = server.objects["b"][f"all/{name}"].headers
            assert headers["x-amz-storage-class"] == "STANDARD_IA"
            assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "k"
        assert asked(server, "CopyObject") == (4 if checks == "none" else 0)


@pytest.mark.parametrize(("given", "copies"), [({}, 0), ({"storage_class": "STANDARD_IA"}, 1)])
def test_the_server_does_not_copy_an_unknown_class(given: dict[str, str], copies: int, tmp_path: Path) -> None:
    """A CSV with size and ETag shows no class, which a copy would lose: Ferry reads, unless the job sets it."""
    with OddS3() as server:
        library = Library(server, tmp_path)
        library.put("a.jpg", x_amz_storage_class="GLACIER_IR")
        line = ["s3://b/old/a.jpg", str(len(IMAGE)), server.objects["b"]["old/a.jpg"].etag.strip('"')]
        manifest = write_list(tmp_path / "list.csv", [line], ("url", "size", "etag"))
        destination = {"uri": "s3://b/new/", **given}
        library.run(manifest=str(manifest), source={"roots": ["s3://b/old/"]}, destination=destination, checks="none")
        assert asked(server, "CopyObject") == copies
        expected = given.get("storage_class", "GLACIER_IR")
        assert {k.lower(): v for k, v in library.copy("a.jpg").items()}["x-amz-storage-class"] == expected


@pytest.mark.parametrize("attributes", [{"drop": ["tags"]}, {"keep": ["metadata"]}, {"set": {"Expires": "1"}}])
def test_the_server_does_not_copy_what_would_differ(attributes: dict[str, Any], tmp_path: Path) -> None:
    """With rules for single attributes Ferry reads and writes, so that the copy has what the job says."""
    with OddS3() as server:
        library = Library(server, tmp_path)
        library.put("a.jpg", x_amz_tagging="a=1", Expires="0")
        library.run(checks="none", destination={"uri": "s3://b/new/", "attributes": attributes})
        assert server.requests["CopyObject"] == 0
        lower = {name.lower(): value for name, value in library.copy("a.jpg").items()}
        assert ("x-amz-tagging" in lower) == ("set" in attributes)
        assert lower.get("expires") == {"drop": "0", "keep": None, "set": "1"}[next(iter(attributes))]


def test_a_redirect_of_an_empty_object(tmp_path: Path) -> None:
    """CopyObject does not copy it, so an object without bytes is read and written."""
    with OddS3() as server:
        library = Library(server, tmp_path)
        library.put("empty", b"", x_amz_website_redirect_location="/elsewhere")
        library.put("a.jpg")
        assert library.run(checks="none")["empty"].status is Status.COPIED
        assert library.copy("empty")["x-amz-website-redirect-location"] == "/elsewhere"
        assert asked(server, "CopyObject") == 1


@pytest.mark.parametrize("checks", ["image", "none"])
def test_refused_tags_are_counted(checks: str, tmp_path: Path) -> None:
    """Each row says what it lost, the counts have it by name, and only the first rows pay for a second request."""
    with OddS3(faults=[Fault("status", WRITES, **REFUSED_TAGS)]) as server:
        if checks == "none":  # the right to tag is needed for a copy, too
            server.faults.append(Fault("status", ("CopyObject",), status=403, code="AccessDenied"))
        library = Library(server, tmp_path)
        for number in range(8):
            library.put(f"{number}.jpg", x_amz_tagging="a=1")
        found = library.run(checks=checks, concurrency=1)
        assert {tuple(outcome.lost_attributes or ()) for outcome in found.values()} == {("tags",)}
        assert len({outcome.attributes_sha256 for outcome in found.values()}) == 1
        assert counts_of(library.state).lost_attributes == {"tags": 8}
        assert asked(server, "PutObject") == 9
        assert server.requests["CopyObject"] == (1 if checks == "none" else 0), "that of the trial"


def test_a_class_of_another_store_is_counted(tmp_path: Path) -> None:
    """InvalidStorageClass costs one request for each class, not for each row."""
    with OddS3(checksums=True, faults=[Fault("status", WRITES, **REFUSED_CLASS)]) as server:
        library = Library(server, tmp_path)
        for number in range(6):
            library.put(f"{number}.jpg", x_amz_storage_class=("GOLD", "SILVER")[number % 2])
        found = library.run(concurrency=1)
        assert {tuple(outcome.lost_attributes or ()) for outcome in found.values()} == {("storage_class",)}
        assert server.requests["PutObject"] == 9, "the first 400 may also be about checksums"


def test_hidden_tags_are_lost_or_fail(tmp_path: Path) -> None:
    """Tags that the source has and does not show are lost like those that the destination cannot hold."""
    with OddS3(faults=[Fault("status", ("GetObjectTagging",), status=403, code="AccessDenied")]) as server:
        library = Library(server, tmp_path)
        library.put("a.jpg", x_amz_tagging="a=1")
        found = library.run(on_lost_attribute="fail")["a.jpg"]
        assert found.error_class is ErrorClass.LOST_ATTRIBUTE
        assert "new/a.jpg" not in server.objects["b"]
        library.state = directory_state(tmp_path, "second")
        found = library.run(checks="image")["a.jpg"]
        assert (found.status, list(found.lost_attributes or ())) == (Status.COPIED, ["tags"])


def test_a_refused_bucket_stays_fatal(tmp_path: Path) -> None:
    """Tags do not hide that the destination refuses every write."""
    with OddS3(faults=[Fault("status", WRITES, status=403, code="AccessDenied")]) as server:

        async def go(store: Store) -> None:
            await store.put("k", make_body(b"x", tmp_path), {TAGS: "a=1"})

        with pytest.raises(Fatal):
            with_store(server, tmp_path, go)


def test_what_a_store_forgets(tmp_path: Path) -> None:
    """The first object that has a header is read again while the others wait, so that no row says what is not there."""
    with OddS3() as server:
        server.forgets = {"expires", "content-language"}
        library = Library(server, tmp_path)
        for number in range(20):
            library.put(f"{number}.jpg", Expires="0", Cache_Control="no-cache")
        library.put("plain.jpg")
        found = library.run()
        read = server.requests["GetObject"] - len(found)
        assert read == 1, "one object was read again, for all headers that it had"
        lost = {key: tuple(outcome.lost_attributes or ()) for key, outcome in found.items()}
        assert lost == {key: () if key == "plain.jpg" else ("Expires",) for key in lost}
        store = open_store("s3://b/new/", access(server), tmp_path)
        result = asyncio.run(verify.read_back(store, list(found.values()), 2, Progress()))
        assert (result.checked, result.altered) == (21, 0)


def test_what_a_store_forgets_may_fail(tmp_path: Path) -> None:
    """Of rows that may lose nothing, the first one shows it and the others are not written."""
    with OddS3() as server:
        server.forgets = {"expires"}
        library = Library(server, tmp_path)
        for number in range(5):
            library.put(f"{number}.jpg", Expires="0")
        found = library.run(on_lost_attribute="fail")
        assert {outcome.error_class for outcome in found.values()} == {ErrorClass.LOST_ATTRIBUTE}
        messages = [outcome.message or "" for outcome in found.values()]
        assert (
            sum("does not keep Expires of this object; the object was written without" in text for text in messages)
            == 1
        )
        assert len(server.stored("b", "new/")) == 1


def test_an_object_that_cannot_be_read_again(tmp_path: Path) -> None:
    """Nothing is known of what a store keeps that shows no object, such as one in an archive."""
    with OddS3(faults=[Fault("status", ("GetObject",), status=403, code="InvalidObjectState", key="p/")]) as server:

        async def go(store: Store) -> list[Sent]:
            return [await store.put(key, make_body(b"x", tmp_path), {"Expires": "0"}) for key in ("k", "l")]

        assert [sent.lost for sent in with_store(server, tmp_path, go)] == [(), ()]
        assert server.requests["GetObject"] == 1


def test_a_header_that_was_empty_teaches_nothing(tmp_path: Path) -> None:
    """Google has objects with an empty Content-Encoding; a store that does not keep it may keep a text."""
    with OddS3() as server:

        async def go(store: Store) -> tuple[str, ...]:
            server.forgets = {"expires", "cache-control"}
            await store.put("k", make_body(b"x", tmp_path), {"Expires": "", "Cache-Control": ""})
            server.forgets = set()
            return (await store.put("l", make_body(b"x", tmp_path), {"Expires": "0", "Cache-Control": "no-cache"})).lost

        assert with_store(server, tmp_path, go) == ()


def test_a_forgotten_coding_fails_each_row(tmp_path: Path) -> None:
    """Without Content-Encoding the bytes cannot be read, so it is never left out of later objects."""
    with OddS3() as server:
        server.forgets = {"content-encoding"}

        async def go(store: Store) -> dict[str, str]:
            for key in "kl":
                with pytest.raises(ObjectError, match="does not keep Content-Encoding"):
                    await store.put(key, make_body(b"x", tmp_path), {"Content-Encoding": "gzip"})
            server.forgets = set()
            await store.put("m", make_body(b"x", tmp_path), {"Content-Encoding": "gzip"})
            return (await store.get("m", max_bytes=9))[2]

        assert with_store(server, tmp_path, go)["Content-Encoding"] == "gzip"


def test_what_is_forgotten_of_a_large_object(tmp_path: Path) -> None:
    """Only its headers are read again, so it may be of any size."""
    with OddS3() as server:
        server.forgets = {"expires"}

        async def go(store: Store) -> tuple[str, ...]:
            return (await store.put("k", make_body(bytes(9 << 20), tmp_path), {"Expires": "0"})).lost

        assert with_store(server, tmp_path, go) == ("Expires",)


@pytest.mark.parametrize(
    ("status", "answer", "refused"),
    [
        (400, "HTTP 400 (InvalidStorageClass)", TIER),
        (400, "HTTP 400 (InvalidArgument)", TIER),
        (400, "HTTP 400 (RequestTimeout)", None),
        (400, "HTTP 400", None),
        (403, "HTTP 403 (AccessDenied)", TAGS),
        (501, "HTTP 501 (NotImplemented)", TAGS),
        (500, "HTTP 500", None),
    ],
)
def test_what_an_upload_was_refused_for(status: int, answer: str, refused: str | None) -> None:
    """A slow request says nothing about the class: a whole library would land in another one."""
    error = ObjectError(ErrorClass.STORE_ERROR, f"the destination answered {answer}", status_code=status)
    assert refused_attribute(error, {TIER: "GLACIER", TAGS: "a=1"}) == refused
    assert refused_attribute(error, {}) is None
