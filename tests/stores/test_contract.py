"""The contract of stores, held against each server: what is written is found, confirmed by its digest or not at all.

A server is a line in SERVERS. `python -m tests.stores.table` prints what each one did.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ferry.core.body import Body, BodyWriter, Spooled, file_body
from ferry.core.errors import Fatal, LeaseHeld, ObjectError, UserError
from ferry.core.memory_budget import MIB, Budget
from ferry.core.records import Confirmed, ErrorClass
from ferry.http.network import tls
from ferry.state import lease
from ferry.state.bucket import open_state
from ferry.state.files import DirectoryState, State
from ferry.state.open_uploads import Uploads
from ferry.storage import store as store_module
from ferry.storage.access import Access
from ferry.storage.azure import container
from ferry.storage.confirmation import Confirmation
from ferry.storage.factory import open_store
from ferry.storage.gcs import bucket as gcs_bucket
from ferry.storage.object_info import Sent
from ferry.storage.provider import CannotCopy
from ferry.storage.s3 import bucket as s3_bucket
from ferry.storage.store import AlreadyThere, Store
from ferry.storage.unfinished import Unfinished
from tests.servers.stores import (
    Azurite,
    Ceph,
    FakeGcsServer,
    GcpStorageEmulator,
    LocalDirectory,
    MinioGateway,
    Moto,
    Rclone,
    SeaweedFS,
    StoreServer,
)
from tests.stores.odd_keys import ODD_KEYS, what_becomes_of
from tests.support.helpers import make_body

FIRST_TIER = (SeaweedFS, LocalDirectory)
SERVERS: tuple[type[StoreServer], ...] = (
    *FIRST_TIER,
    Ceph,
    Moto,
    MinioGateway,
    Rclone,
    FakeGcsServer,
    GcpStorageEmulator,
    Azurite,
)

PART = 5 * MIB  # the smallest that stores take
LARGE = random.Random(5).randbytes(2 * PART + 7)  # three parts
ATTRIBUTES = {
    "Content-Type": "image/webp",
    "Cache-Control": "max-age=60",
    "Content-Disposition": 'inline; filename="a.webp"',
    "Content-Language": "de",
    "Content-Encoding": "gzip",
    "sku": "A 1",
}
Tell = Callable[[str, str], None]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(each, id=each.name, marks=[] if each in FIRST_TIER else [pytest.mark.slow]) for each in SERVERS
    ],
)
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    """A server, started by the first test that needs it."""
    if (reason := request.param.missing()) is not None:
        pytest.skip(reason)
    with request.param() as running, pytest.MonkeyPatch.context() as patch:
        if running.certificate is not None:
            patch.setenv("SSL_CERT_FILE", str(running.certificate))
            tls.cache_clear()
        yield running
    tls.cache_clear()


@pytest.fixture
def bucket(server: StoreServer) -> str:
    """A new bucket, container or folder; its name."""
    name = f"test-{secrets.token_hex(6)}"
    server.make_bucket(name)
    return name


@pytest.fixture
def tell(server: StoreServer, record_property: Tell) -> Tell:
    """Writes an answer of this server into the table."""
    record_property("server", server.name)
    return record_property


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", PART)
    for module in (s3_bucket, gcs_bucket, container):
        monkeypatch.setattr(module, "PART_BYTES", PART)


class Opened:
    """Opens stores on one server, and writes and reads as a transfer does."""

    def __init__(self, server: StoreServer, bucket: str, folder: Path) -> None:
        self.server, self.bucket, self.folder = server, bucket, folder

    @contextlib.asynccontextmanager
    async def store(self, *, access: Access | None = None, prefix: str = "p", **given: Any) -> AsyncIterator[Store]:
        uri = self.server.uri(self.bucket, prefix)
        spool = self.folder / "spool"
        store = open_store(uri, access or self.server.access(), spool, create=True, **given)
        try:
            yield store
        finally:
            await store.close()

    def state(self, number: int = 0) -> State:
        return open_state(self.server.state_uri(self.bucket), self.server.access(), self.folder / f"cache-{number}")

    def body(self, data: bytes) -> Body:
        return make_body(data, self.folder / "spool")

    async def put(self, store: Store, key: str, data: bytes, *, create: bool = False) -> Confirmation:
        body = self.body(data)
        try:
            return await store.confirm(key, body, await store.put(key, body, {}, create=create))
        finally:
            body.discard()


@pytest.fixture
def opened(server: StoreServer, bucket: str, tmp_path: Path) -> Opened:
    (tmp_path / "spool").mkdir()
    return Opened(server, bucket, tmp_path)


async def read(store: Store, key: str) -> bytes:
    body, found, _ = await store.get(key, max_bytes=1 << 30)
    assert (found.key, found.size) == (key, body.size)
    with body.buffer() as data:
        taken = bytes(data)
    body.discard()
    return taken


def listed(store: Store, **given: Any) -> list[str]:
    return [found.key for page in store.list(**given) for found in page]


@pytest.mark.parametrize("name", ODD_KEYS)
def test_an_odd_key_is_kept_as_it_is(name: str, opened: Opened, server: StoreServer, bucket: str) -> None:
    """An odd key is written, found, read and deleted byte for byte. Where the server does not keep it, at most its row
    fails: the next one is written by the same store."""
    key, data, known = ODD_KEYS[name], name.encode(), server.known.keys.get(name, "kept")
    if name in server.known.bad_keys:
        known = "refused"

    async def work() -> None:
        async with opened.store() as store:
            try:
                await opened.put(store, key, data)
                assert known != "refused"
            except ObjectError:
                assert known != "kept"
            if known == "kept":
                found = await store.head(key)
                assert found is not None
                assert (found.key, found.size) == (key, len(data))
                assert await read(store, key) == data
                assert listed(store) == [key]
                assert server.keys(bucket) == [f"p/{key}"]
                assert server.get(bucket, f"p/{key}") == data
                await store.delete(key)
                assert server.keys(bucket) == []
            await opened.put(store, "plain.jpg", data)
            assert await read(store, "plain.jpg") == data

    asyncio.run(work())


@pytest.mark.parametrize("name", ODD_KEYS)
def test_an_odd_key_of_another_client_is_read(
    name: str, opened: Opened, server: StoreServer, bucket: str, tell: Tell
) -> None:
    """What another client wrote under an odd key is listed and read; what the server makes of the key is known."""
    found = what_becomes_of(server, bucket, f"p/{ODD_KEYS[name]}")
    tell(f"key: {name}", found)
    assert found == server.known.keys.get(name, "kept")
    if found == "unlisted":
        return

    async def work() -> None:
        async with opened.store() as store:
            assert [f"p/{each}" for each in listed(store)] == server.keys(bucket)
            if found == "kept":
                assert await read(store, ODD_KEYS[name]) == b"an image"

    asyncio.run(work())


def taken(server: StoreServer) -> dict[str, str]:
    """Returns ATTRIBUTES without a Content-Encoding that the server would forget: that is the row's failure."""
    forgets = "Content-Encoding" in server.known.lost and server.scheme != "file"
    return {name: value for name, value in ATTRIBUTES.items() if not forgets or name != "Content-Encoding"}


def test_attributes_are_kept(opened: Opened, server: StoreServer, bucket: str, tell: Tell) -> None:
    """Type, headers and metadata arrive, and are read again; what a server loses is known."""
    data = gzip.compress(b"an image")

    async def work() -> dict[str, str]:
        async with opened.store() as store:
            body = opened.body(data)
            if "Content-Encoding" in server.known.lost and server.scheme != "file":
                with pytest.raises(ObjectError, match="does not keep Content-Encoding"):  # the bytes could not be read
                    await store.put("k", body, ATTRIBUTES)
            await store.confirm("k", body, await store.put("k", body, taken(server)))
            got, _, attributes = await store.get("k", max_bytes=1 << 20)
            assert got.data == data, "stored bytes, not decoded ones"
            return attributes

    attributes = asyncio.run(work())
    there = server.attributes(bucket, "p/k")
    lost = {name for name, value in ATTRIBUTES.items() if there.get(name) != value}
    tell("attributes lost", ", ".join(sorted(lost)) or "none")
    assert lost == server.known.lost
    names = {name.lower(): value for name, value in attributes.items()}
    assert {name: names.get(name.lower()) for name in ATTRIBUTES if name not in lost} == {
        name: value for name, value in ATTRIBUTES.items() if name not in lost
    }


@pytest.mark.parametrize("where", ["one request", "parts", "spool", "spool of a large body"])
def test_altered_bytes_are_never_confirmed(
    where: str, opened: Opened, server: StoreServer, tell: Tell, request: pytest.FixtureRequest
) -> None:
    """Bytes that are not those of the digests are refused by the server or found by Ferry, whether they change on their
    way or on the spool. A large body has the digests of its parts from its arrival. Of a directory's file the size
    alone is compared, and the confirmation says so."""
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    if where != "one request":
        request.getfixturevalue("small_parts")

    async def work() -> str:
        async with opened.store() as store:
            body = opened.body(LARGE if where != "one request" else b"what was read")
            if where == "spool of a large body":
                assert body.path is not None
                body.parts = file_body(body.path, PART).parts
            if where == "one request":
                body.data = b"what is sent "
            elif where == "parts":
                patch.setattr(Spooled, "read", altered(Spooled.read))
            else:
                assert body.path is not None
                body.path.write_bytes(LARGE[:-1] + bytes([LARGE[-1] ^ 0xFF]))
            try:
                sent = await store.put("k", body, {})
            except ObjectError as error:
                return "Ferry" if "spool file" in error.message else "the server"
            try:
                confirmation = await store.confirm("k", body, sent)
            except ObjectError as error:
                assert error.error_class is ErrorClass.UPLOAD_UNCONFIRMED
                return "Ferry"
            return f"nothing ({confirmation.method})"

    found = asyncio.run(work())
    tell(f"altered bytes are found by: {where}", found)
    assert found == "nothing (size)" if server.scheme == "file" else not found.startswith("nothing")
    if where == "one request":
        assert (found == "the server") is server.known.compares_digest


def altered(read: Callable[[Spooled, int], Awaitable[bytes]]) -> Callable[[Spooled, int], Awaitable[bytes]]:
    """Returns :meth:`Spooled.read` with the first byte of the first piece of each body changed."""

    async def changed(spooled: Spooled, offset: int) -> bytes:
        piece = await read(spooled, offset)
        return piece if offset else bytes([piece[0] ^ 0xFF]) + piece[1:]

    return changed


@pytest.mark.slow  # SeaweedFS takes eight seconds
def test_of_32_creations_one_wins(opened: Opened, server: StoreServer, bucket: str, tell: Tell) -> None:
    """Of 32 creations of one key at once one succeeds, and its bytes stay. What ignores the condition is known."""

    async def work() -> list[int]:
        async with opened.store() as store:
            bodies = [opened.body(b"body %d" % n) for n in range(32)]
            ends = await asyncio.gather(
                *(store.put("k", body, {}, create=True) for body in bodies), return_exceptions=True
            )
        classes = [end.error_class if isinstance(end, ObjectError) else type(end) for end in ends]
        overloaded = set() if server.known.creates_once else {ErrorClass.STORE_ERROR}
        assert set(classes) <= {Sent, ErrorClass.EXISTS, *overloaded}
        return [n for n, end in enumerate(ends) if not isinstance(end, BaseException)]

    winners = asyncio.run(work())
    tell("of 32 creations at once, succeed", "1" if len(winners) == 1 else "several")
    assert winners
    assert (len(winners) == 1) is server.known.creates_once
    if server.known.creates_once:  # rclone mixes the bodies of those that succeed
        assert server.get(bucket, "p/k") == b"body %d" % winners[0]


def test_a_state_excludes_a_second_run_or_is_refused(
    opened: Opened, server: StoreServer, bucket: str, tell: Tell
) -> None:
    """A lease excludes a second run, is renewed and is given back. A store without conditions is refused with a
    sentence before anything is written."""
    if not server.known.holds_state:
        with pytest.raises(UserError, match="cannot hold a state") as caught, lease.hold_lease(opened.state(), "one"):
            pass
        tell("a state", f"refused: {'If-None-Match' if 'If-None-Match' in str(caught.value) else 'If-Match'}")
        assert [key for key in server.keys(bucket) if not key.endswith("/")] == []
        return
    tell("a state", "held" if server.known.if_match == "yes" else f"held, If-Match {server.known.if_match}")
    with lease.hold_lease(opened.state(), "one") as held:
        with pytest.raises(LeaseHeld), lease.hold_lease(opened.state(1), "two"):
            pass
        assert held._renew()
        assert held._renew()
    with lease.hold_lease(opened.state(1), "two") as taken:
        assert taken.took_over is None


def test_of_16_replacements_one_wins(opened: Opened, server: StoreServer) -> None:
    """Of 16 replacements of one version of a state's file at once one succeeds, and its bytes stay."""
    if not server.known.holds_state:
        pytest.skip(f"{server.name} holds no state")
    states = [opened.state(n) for n in range(16)]
    assert states[0].create("overrides.json", b"old")
    with ThreadPoolExecutor(len(states)) as pool:
        won = list(pool.map(lambda n: states[n].swap("overrides.json", b"old", b"new %d" % n), range(len(states))))
    assert sum(won) == 1
    assert states[0].read("overrides.json") == b"new %d" % won.index(True)


TRAPS = ["plain", "a b", "a+b", "a%20b", "a&b", "a=b", "gr\u00fcn", "\U0001f600", "<x>", "~", "'"]


def test_a_listing_of_several_pages(opened: Opened, server: StoreServer, tell: Tell) -> None:
    """Each key is listed once, whatever character ends a page, and a listing continues after any of them."""
    beside = ("~a-x", "~a.x", "~a/x", "~a0x")  # a store that has folders lists that of `a` first
    keys = sorted((*(f"{n:04d} {TRAPS[n % len(TRAPS)]}" for n in range(1100)), *beside), key=str.encode)

    async def work() -> None:
        async with opened.store() as store:
            at_once = asyncio.Semaphore(server.known.at_once)

            async def put(key: str) -> None:
                async with at_once:
                    await opened.put(store, key, b"x")

            await asyncio.gather(*(put(key) for key in keys))
            found = listed(store)
            tell("listings in byte order", "yes" if found == keys else "no")
            assert sorted(found, key=str.encode) == keys
            assert (found == keys) is server.known.byte_order
            if server.known.byte_order and server.known.starts_after:
                for at in range(len(TRAPS)):
                    assert listed(store, start_after=keys[at]) == keys[at + 1 :], keys[at]

    asyncio.run(work())


def test_wrong_credentials_end_the_run(opened: Opened, server: StoreServer, bucket: str, tell: Tell) -> None:
    """Credentials that are wrong or have expired are a Fatal with a sentence, at the first object."""
    given = server.wrong_access(bucket)
    if not given:
        pytest.skip(f"{server.name} has no credentials")

    async def work(access: Access) -> None:
        async with opened.store(access=access) as store:
            await opened.put(store, "k", b"x")

    tell("wrong credentials", "refused" if server.known.checks_keys else "taken")
    for access in given.values():
        if server.known.checks_keys:
            with pytest.raises(Fatal, match="credentials"):
                asyncio.run(work(access))
        else:
            asyncio.run(work(access))


def test_what_is_not_there(opened: Opened, server: StoreServer) -> None:
    """A missing object is None, not_found and no error of a deletion. A missing bucket is Fatal with a sentence."""

    async def work() -> None:
        async with opened.store() as store:
            assert await store.head("none.jpg") is None
            with pytest.raises(ObjectError) as caught:
                await store.get("none.jpg", max_bytes=9)
            assert caught.value.error_class is ErrorClass.NOT_FOUND
            await store.delete("none.jpg")
            assert listed(store) == []
        if server.known.names_missing and not server.known.makes_buckets:
            opened.bucket = "there-is-none"
            async with opened.store() as store:
                with pytest.raises(Fatal, match="does not exist"):
                    await opened.put(store, "k", b"x")

    asyncio.run(work())


@pytest.mark.parametrize("size", [7, len(LARGE)], ids=["one request", "parts"])
def test_a_key_that_is_there_is_not_written_again(
    size: int, opened: Opened, server: StoreServer, bucket: str, small_parts: None
) -> None:
    """A creation of a key that is there fails its row and leaves the bytes (409 or 412)."""

    async def work() -> None:
        async with opened.store() as store:
            await opened.put(store, "k", b"first")
            with pytest.raises(ObjectError) as caught:
                await opened.put(store, "k", LARGE[:size], create=True)
            assert caught.value.error_class is ErrorClass.EXISTS

    if size == 7 and not server.known.creates_once:
        pytest.skip(f"{server.name} ignores the condition")  # an upload in parts asks by HEAD first
    asyncio.run(work())
    assert server.get(bucket, "p/k") == b"first"


def test_an_object_that_appears_during_an_upload(
    opened: Opened, server: StoreServer, bucket: str, tell: Tell, small_parts: None
) -> None:
    """An object that another client writes during a creation in parts stays. What ignores the condition is known."""
    if server.scheme == "file":
        pytest.skip("a directory has no uploads in parts")
    if server.known.at_once == 1:
        pytest.skip(f"{server.name} answers one request after the other")

    async def work() -> bool:
        async with opened.store() as store:
            body, begun = opened.body(LARGE), asyncio.Event()
            body.on_progress = begun.set
            put = asyncio.create_task(store.put("k", body, {}, create=True))
            await begun.wait()
            server.put(bucket, "p/k", b"theirs")
            try:
                await put
            except AlreadyThere:
                return True
            return False

    refused = asyncio.run(work())
    tell("an object that appears during an upload in parts", "stays" if refused else "is overwritten")
    assert refused is server.known.creates_parts_once
    assert (server.get(bucket, "p/k") == b"theirs") is refused


def test_an_upload_in_parts(opened: Opened, server: StoreServer, bucket: str, tell: Tell, small_parts: None) -> None:
    """A large body arrives whole and is confirmed by its digest; no upload stays open."""

    async def work() -> Confirmation:
        async with opened.store() as store:
            return await opened.put(store, "large.bin", LARGE)

    confirmation = asyncio.run(work())
    tell("an upload in parts is confirmed by", str(confirmation.method))
    assert confirmation.method is (Confirmed.SIZE if server.scheme == "file" else Confirmed.DIGEST)
    assert server.get(bucket, "p/large.bin") == LARGE
    assert server.open_uploads(bucket) == []


def test_an_upload_that_was_killed_is_cleaned(
    opened: Opened, server: StoreServer, bucket: str, tmp_path: Path, small_parts: None
) -> None:
    """An upload that ends half-way leaves no object; the next run of the job aborts it."""
    if server.scheme == "file":
        pytest.skip("a directory's file is renamed: tests/ferry/storage/test_directory.py")
    notes = Uploads(DirectoryState(tmp_path / "notes"))

    async def work() -> None:
        async with opened.store(upload_log=notes) as store:
            body, half_way, pieces = opened.body(LARGE), asyncio.Event(), 0

            def sent() -> None:
                nonlocal pieces
                pieces += 1
                if pieces == 5:
                    half_way.set()

            body.on_progress = sent
            put = asyncio.create_task(store.put("k.bin", body, {}))
            await half_way.wait()
            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put
            body.discard()
        assert notes.left(bucket) == ["p/k.bin"]
        if server.scheme == "s3":
            assert server.open_uploads(bucket) == ["p/k.bin"]
        async with opened.store(upload_log=notes) as store:
            await store.clean()

    asyncio.run(work())
    assert (notes.left(bucket), server.keys(bucket)) == ([], [])
    assert not server.known.aborts or server.open_uploads(bucket) == []


def test_an_upload_that_was_killed_goes_on(
    opened: Opened, server: StoreServer, bucket: str, tmp_path: Path, small_parts: None
) -> None:
    """The next run sends only what the store does not have; the object is whole, and confirmed by its digest."""
    if server.scheme == "file" or isinstance(server, FakeGcsServer):
        pytest.skip("a directory has no uploads; fake-gcs-server ends an upload that is asked for")
    notes = Uploads(DirectoryState(tmp_path / "notes"))
    given: dict[str, Any] = {"upload_log": notes, "budget": Budget(MIB)}  # one part at a time

    async def work() -> Confirmation:
        async with opened.store(**given) as store:
            body, second_part, pieces = opened.body(LARGE), asyncio.Event(), 0

            def sent() -> None:
                nonlocal pieces
                pieces += 1
                if pieces == PART // MIB + 2:
                    second_part.set()

            body.on_progress, body.about = sent, {"row_id": "r"}
            put = asyncio.create_task(store.put("k.bin", body, taken(server)))
            await second_part.wait()
            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put
            body.discard()
        async with opened.store(**given) as store:
            await store.uploads.find()
            await store.clean()
            unfinished = await store.uploads.unfinished("r")
            assert unfinished is not None
            assert unfinished.start == PART
            rest, pieces = rest_of(LARGE, unfinished, tmp_path), 0
            rest.on_progress = sent
            try:
                return await store.confirm("k.bin", rest, await store.put("k.bin", rest, taken(server)))
            finally:
                rest.discard()
                assert pieces <= PART // MIB + 1  # less where the store has a part of the second part

    assert asyncio.run(work()).method is Confirmed.DIGEST
    assert server.get(bucket, "p/k.bin") == LARGE
    assert server.attributes(bucket, "p/k.bin")["sku"] == "A 1"
    assert (notes.left(bucket), server.open_uploads(bucket)) == ([], [])


def rest_of(data: bytes, unfinished: Unfinished, spool: Path) -> Body:
    """The bytes that an upload lacks, as a transfer has them."""
    writer = BodyWriter(spool, unfinished.part_bytes)
    writer.spool()
    writer.write(data[unfinished.start :])
    body = writer.finish()
    body.size, body.md5, body.sha256, body.start = unfinished.size, unfinished.md5, unfinished.sha256, unfinished.start
    return body


def test_the_server_s_copy_is_that_of_the_listed_version(
    opened: Opened, server: StoreServer, bucket: str, tell: Tell
) -> None:
    """A copy by the server is confirmed by its digest; one of another version than the listed one never is."""
    if server.scheme == "file":
        pytest.skip("a directory does not copy")

    async def work() -> None:
        async with opened.store(prefix="old") as source, opened.store() as store:
            await opened.put(source, "k", b"old bytes")
            found = await source.head("k")
            assert found is not None
            assert found.etag is not None
            assert store.can_copy_from(source)
            copied = await store.copy_from(source, "k", "k", size=9, etag=found.etag)
            assert copied.method is Confirmed.DIGEST
            assert server.get(bucket, "p/k") == b"old bytes"
            await opened.put(source, "k", b"new bytes")
            with pytest.raises(CannotCopy):
                await store.copy_from(source, "k", "k2", size=9, etag=found.etag)
        done = server.get(bucket, "p/k2") is not None
        tell("a copy of another version", "made" if done else "refused")
        assert done is not server.known.copies_if_equal

    asyncio.run(work())


def test_digests_of_what_is_stored(opened: Opened) -> None:
    """An object's digest is that of its bytes."""

    async def work() -> None:
        async with opened.store() as store:
            await opened.put(store, "k", LARGE)
            digest, found = await store.digest("k", max_bytes=1 << 30)
            assert (digest, found.size) == (hashlib.sha256(LARGE).hexdigest(), len(LARGE))

    asyncio.run(work())
