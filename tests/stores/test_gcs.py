"""Ferry's client for Google Cloud Storage against two emulators.

What neither of them does is in tests/ferry/storage/test_gcs.py.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ferry.core import TIER
from ferry.core.body import Spooled, small_body
from ferry.core.errors import ObjectError
from ferry.core.memory_budget import PART_BYTES
from ferry.core.records import ErrorClass
from ferry.storage.gcs import Anonymous, Gcs
from ferry.storage.object_info import ObjectInfo
from ferry.storage.provider import CannotCopy, Digests
from tests.servers.stores.gcs_servers import FakeGcsServer, GcpStorageEmulator, GcsServer
from tests.stores.odd_keys import ODD_KEYS

ATTRIBUTES = {
    "Content-Type": "image/jpeg",
    "Cache-Control": "max-age=60, public",
    "Content-Language": "de",
    "Content-Disposition": 'inline; filename="grün.jpg"',
    "Owner-Name": "jemand, größer \U0001f600",
    "empty": "",
    TIER: "NEARLINE",
}


def _started(kind: type[GcsServer]) -> Iterator[GcsServer]:
    if (reason := kind.missing()) is not None:
        pytest.skip(reason)
    with kind() as server:
        yield server


@pytest.fixture(scope="module")
def fake() -> Iterator[GcsServer]:
    """fake-gcs-server: generations, copies, every key."""
    yield from _started(FakeGcsServer)


@pytest.fixture(scope="module")
def strict() -> Iterator[GcsServer]:
    """gcp-storage-emulator: compares digests, and answers where an upload stands."""
    yield from _started(GcpStorageEmulator)


@asynccontextmanager
async def opened(server: GcsServer, bucket: str = "") -> AsyncIterator[Gcs]:
    """A client for a bucket, a new one by default."""
    if not bucket:
        bucket = f"bucket-{secrets.token_hex(6)}"
        server.make_bucket(bucket)
    gcs = Gcs(server.endpoint_url, bucket, Anonymous(), timeout_s=60, read_s=30)
    try:
        yield gcs
    finally:
        await gcs.close()


def digests(data: bytes) -> Digests:
    body = small_body(data)
    return Digests(body.md5, body.sha256)


async def put(gcs: Gcs, key: str, data: bytes, attributes: dict[str, str] = {}, *, create: bool = False) -> str:
    """Writes an object and returns its generation, or "" if it exists."""
    sent = await gcs.put(key, data, digests(data), attributes, create=create)
    assert sent.exists or sent.md5 == digests(data).md5
    return sent.version or ""


async def keys(gcs: Gcs, prefix: str = "", after: str | None = None) -> list[str]:
    found, token = [], None
    while True:
        page = await gcs.page(prefix, "source", after=after, token=token)
        found += [info.key for info in page.objects]
        if (token := page.token) is None:
            return found


def test_bytes_and_attributes_come_back(fake: GcsServer) -> None:
    """Every attribute is as it was, metadata outside ASCII too; the listing and HEAD have the MD5."""
    data = b"\0\xffbytes\r\n--" * 1000

    async def go() -> None:
        async with opened(fake) as gcs:
            version = await put(gcs, "a/b", data, ATTRIBUTES)
            got = await gcs.get("a/b", "source")
            assert (await got.response.read(), got.attributes) == (data, ATTRIBUTES)
            assert (got.info.version, got.info.md5, got.info.tier) == (version, digests(data).md5, "NEARLINE")
            head = await gcs.head("a/b", "source")
            assert head == got.info == (await gcs.page("", "source")).objects[0]
            assert head.last_modified is not None
            assert await gcs.head("nothing", "destination") is None

    asyncio.run(go())


KEYS = {name: key for name, key in ODD_KEYS.items() if name != "newline"}  # Google does not allow it


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_no_key_is_changed_on_its_way(key: str, fake: GcsServer) -> None:
    """An odd key is written, listed, read, looked up, copied and deleted under itself."""

    async def go() -> None:
        async with opened(fake) as gcs:
            generation = await put(gcs, key, b"an image")
            assert await keys(gcs) == [key]
            assert await (await gcs.get(key, "source")).response.read() == b"an image"
            found = await gcs.head(key, "destination")
            assert found is not None
            assert (found.key, found.version) == (key, generation)
            bucket = gcs._client.bucket
            assert (await gcs.copy(f"copy/{key}", bucket, found)).md5 == digests(b"an image").md5
            await gcs.delete([key, f"copy/{key}"], "destination")
            assert await keys(gcs) == []

    asyncio.run(go())


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_sizes(size: int, fake: GcsServer) -> None:
    """Nothing, one byte, and more than one read: from memory and from a spool file."""
    data = os.urandom(size)

    async def go() -> None:
        async with opened(fake) as gcs:
            await put(gcs, "in memory", data)
            file = os.memfd_create("body")
            os.write(file, data)
            sent = await gcs.put("spooled", Spooled(file, size), digests(data), {}, create=False)
            os.close(file)
            assert sent.md5 == digests(data).md5
            for key in ("in memory", "spooled"):
                assert await (await gcs.get(key, "source")).response.read() == data

    asyncio.run(go())


def test_a_gzip_object_stays_as_it_is_stored(fake: GcsServer, strict: GcsServer) -> None:
    """Google decodes what is stored with `Content-Encoding: gzip`, unless the client accepts gzip."""
    data = gzip.compress(b"text" * 1000)

    async def go(server: GcsServer) -> None:
        async with opened(server) as gcs:
            await put(gcs, "a", data, {"Content-Encoding": "gzip", "Content-Type": "text/plain"})
            got = await gcs.get("a", "source")
            assert (await got.response.read(), got.attributes["Content-Encoding"]) == (data, "gzip")

    asyncio.run(go(fake))
    asyncio.run(go(strict))


def test_a_wrong_digest_is_refused(strict: GcsServer) -> None:
    """The MD5 is in the request: the server compares it, and stores nothing."""

    async def go() -> None:
        async with opened(strict) as gcs:
            with pytest.raises(ObjectError) as caught:
                await gcs.put("a", b"other bytes", digests(b"bytes"), {}, create=False)
            assert (caught.value.error_class, caught.value.status_code) == (ErrorClass.STORE_ERROR, 400)
            assert await keys(gcs) == []

    asyncio.run(go())


def test_one_of_many_creates(fake: GcsServer) -> None:
    """Of 32 who create the same key at once, one does, and the object is that one's."""

    async def go() -> None:
        async with opened(fake) as gcs:
            made = await asyncio.gather(*[put(gcs, "a", str(n).encode(), create=True) for n in range(32)])
            (winner,) = [n for n, generation in enumerate(made) if generation]
            assert await (await gcs.get("a", "source")).response.read() == str(winner).encode()

    asyncio.run(go())


def test_files_of_a_state(fake: GcsServer) -> None:
    """A small object is created once, and replaced only by a writer that knows its generation."""

    async def go() -> None:
        async with opened(fake) as gcs:
            assert await gcs.read("lease") is None
            made = await asyncio.gather(*[gcs.write_if("lease", str(n).encode(), None) for n in range(8)])
            assert made.count(True) == 1
            found = await gcs.read("lease")
            assert found is not None
            assert found[0] == str(made.index(True)).encode()
            assert await gcs.write_if("lease", b"second", found[1])
            assert not await gcs.write_if("lease", b"third", found[1])
            assert (await gcs.read("lease") or (b"",))[0] == b"second"
            assert not await gcs.write_if("gone", b"x", found[1])

    asyncio.run(go())


def test_the_listing_is_in_byte_order(fake: GcsServer) -> None:
    """Keys come by their bytes, below a prefix, and from the one after a key on."""
    names = ["p/", "p//a", "p/A", "p/a", "p/a b", "p/a!", "p/a/", "p/é", "p/\U0001f600", "p/\uffee", "q"]

    async def go() -> None:
        async with opened(fake) as gcs:
            for name in names:
                await put(gcs, name, b"")
            ordered = sorted((name for name in names if name[0] == "p"), key=str.encode)
            assert await keys(gcs, "p/") == ordered
            for n, name in enumerate(ordered):
                assert await keys(gcs, "p/", name) == ordered[n + 1 :]

    asyncio.run(go())


def test_reading_goes_on_in_the_middle_of_one_version(fake: GcsServer) -> None:
    """From a byte on, and never of an object that was replaced meanwhile."""
    data = os.urandom(100_000)

    async def go() -> None:
        async with opened(fake) as gcs:
            version = await put(gcs, "a", data)
            for key in ({}, {"if_version": version}):
                got = await gcs.get("a", "source", start=70_000, **key)
                assert (await got.response.read(), got.info.size, got.info.version) == (data[70_000:], 100_000, version)
                assert got.info.md5 == digests(data).md5
            await put(gcs, "a", b"other")
            with pytest.raises(ObjectError, match="replaced while it was read"):
                await gcs.get("a", "source", start=1, if_version=version)
            with pytest.raises(ObjectError, match="replaced while it was read"):
                await gcs.get("a", "source", start=6)

    asyncio.run(go())


def test_a_copy_on_the_server(fake: GcsServer) -> None:
    """Only of the version that was listed, by generation or by ETag; attributes go with it."""

    async def go() -> None:
        async with opened(fake) as gcs:
            bucket = gcs._client.bucket
            await put(gcs, "a", b"bytes", {"Content-Type": "image/png", "sku": "7"})
            (info,) = (await gcs.page("", "source")).objects
            by_etag = ObjectInfo("a", info.size, info.etag, None)
            for found in (info, by_etag):
                sent = await gcs.copy("b", bucket, found)
                assert sent.md5 == info.md5
                got = await gcs.get("b", "source")
                assert (await got.response.read(), got.attributes["sku"]) == (b"bytes", "7")
            await put(gcs, "a", b"other")
            for found in (info, by_etag, ObjectInfo("none", 1, None, None, version="1")):
                with pytest.raises(CannotCopy):
                    await gcs.copy("c", bucket, found)  # the emulator copies, but its digest is another

    asyncio.run(go())


def test_the_preflight(fake: GcsServer) -> None:
    """A bucket that is missing is said to be; the check of another leaves nothing."""

    async def go() -> None:
        async with opened(fake) as gcs:
            assert await gcs.refusal("p", writing=True) is None
            assert await gcs.refusal("", writing=False) is None
            assert await keys(gcs) == []
        async with opened(fake, "no-such-bucket") as gcs:
            for writing in (True, False):
                said = await gcs.refusal("p", writing=writing)
                assert said == "does not exist. Create it, or correct its address in the job"

    asyncio.run(go())


# --- uploads in parts

IN_PARTS = r"""
import asyncio, sys, os
from pathlib import Path
from ferry.core.body import Body, Spooled
from ferry.storage.gcs import Anonymous, Gcs
from ferry.storage.provider import Digests
from tests.support.memory import peak_bytes
url, bucket, file, md5, upload, stop_after = sys.argv[1:]

async def go():
    gcs = Gcs(url, bucket, Anonymous(), timeout_s=60, read_s=30)
    body = Path(file).open("rb")
    whole = Spooled(body.fileno(), os.path.getsize(file))
    step = gcs.part_bytes(len(whole))
    if upload == "new":
        name = await gcs.begin("a", {"sku": "7"}, len(whole), md5=md5, create=False)
        start = 0
    else:
        name = upload
        start = sum(part.size for part in await gcs.parts("a", name))
    print(name, start, flush=True)
    for number, offset in enumerate(range(start, len(whole), step)):
        if number == int(stop_after):
            print("waiting", flush=True)
            await asyncio.sleep(600)
        data = whole.slice(offset, min(step, len(whole) - offset))
        await gcs.put_part("a", name, number + 1, data, Digests("", ""), offset)
    sent = await gcs.complete("a", name, [], Body(len(whole), md5, "", path=Path(file)), {}, create=False)
    print(sent.md5, peak_bytes(), flush=True)

asyncio.run(go())
"""


def _in_parts(server: GcsServer, path: Path, md5: str, upload: str, stop_after: int) -> subprocess.Popen[str]:
    """Uploads a file in a process of its own, which stops after so many parts."""
    command = [sys.executable, "-c", IN_PARTS, server.endpoint_url, "parts", str(path), md5, upload, str(stop_after)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_upload_goes_on_from_its_last_byte(strict: GcsServer, tmp_path: Path) -> None:
    """Another process asks where the upload stands, sends the rest, and the MD5 of the whole confirms it."""
    strict.make_bucket("parts")
    path = tmp_path / "body"
    path.write_bytes(os.urandom(3 * PART_BYTES + 12_345))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with _in_parts(strict, path, md5, "new", 2) as killed:
        assert killed.stdout is not None
        upload, start = killed.stdout.readline().split()
        assert (start, killed.stdout.readline()) == ("0", "waiting\n")
        killed.kill()
    with _in_parts(strict, path, md5, upload, -1) as resumed:
        assert resumed.stdout is not None
        assert resumed.stdout.readline().split() == [upload, str(2 * PART_BYTES)]
        assert resumed.stdout.readline().split()[0] == md5
    assert strict.get("parts", "a") == path.read_bytes()
    assert strict.attributes("parts", "a")["sku"] == "7"


@pytest.mark.slow
def test_a_large_body_needs_little_memory(fake: GcsServer, tmp_path: Path) -> None:
    """300 MB from a spool file: the process has less than half of them at any time."""
    fake.make_bucket("parts")
    path = tmp_path / "body"
    block = os.urandom(1_000_000)
    with path.open("wb") as file:
        for number in range(300):
            file.write(number.to_bytes(4, "big") + block[4:])
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    with _in_parts(fake, path, md5, "new", -1) as sending:
        said = (sending.stdout or io.StringIO()).read().split()
    assert said[2] == md5
    assert int(said[3]) < 150_000 * 1024
