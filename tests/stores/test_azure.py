"""Azure Blob Storage against Azurite: what Ferry writes another client reads alike, and what it cannot hold is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ferry.core import TAGS, TIER
from ferry.core.body import Body, Spooled, small_body
from ferry.core.errors import Fatal, ObjectError, Refused
from ferry.core.memory_budget import MIB
from ferry.core.records import Confirmed, ErrorClass
from ferry.http.network import tls
from ferry.storage import AzureAccess, ends_too_early
from ferry.storage.azure import Authority, AzureContainer, Sas, SharedKey, Tokens
from ferry.storage.confirmation import ReadBackPolicy, confirm
from ferry.storage.object_info import ObjectInfo
from ferry.storage.provider import CannotCopy, Digests, Provider
from tests.ferry.storage.test_azure import Unasked
from tests.ferry.storage.test_azure_tokens import Entra, Fixed, identities, jwt, started
from tests.servers.stores import Azurite, AzuriteHttps
from tests.support.memory import forget_peak, peak_bytes

ATTRIBUTES = {
    "Content-Type": "image/jpeg",
    "Cache-Control": "max-age=60, public",
    "Content-Encoding": "gzip",
    "Content-Language": "de",
    "Content-Disposition": "inline",
    "owner": "someone  else",
    "empty": "",
}
Test = Callable[[AzureContainer], Awaitable[None]]


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    """Azurite over http, for all tests of this module."""
    if (reason := Azurite.missing()) is not None:
        pytest.skip(reason)
    with Azurite() as server:
        yield server


@pytest.fixture
def bucket(azurite: Azurite) -> str:
    """A new container; its name."""
    name = f"test-{secrets.token_hex(6)}"
    azurite.make_bucket(name)
    return name


def key_of(azurite: Azurite) -> SharedKey:
    return SharedKey(azurite.account, azurite.account_key)


def in_container(azurite: Azurite, bucket: str, test: Test, authority: Authority | None = None) -> None:
    async def go() -> None:
        found = AzureContainer(azurite.account, bucket, authority or key_of(azurite), endpoint_url=azurite.endpoint_url)
        provider: Provider = found  # the types are those of the contract
        try:
            await test(found)
        finally:
            await provider.close()

    asyncio.run(go())


def digests(data: bytes) -> Digests:
    return Digests(hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest())


async def put(container: AzureContainer, key: str, data: bytes = b"x", *, create: bool = False) -> None:
    sent = await container.put(key, data, digests(data), {}, create=create)
    assert sent.md5 == hashlib.md5(data).hexdigest()


async def stored(container: AzureContainer, key: str) -> bytes:
    return await (await container.get(key, "source")).response.read()


def sas(azurite: Azurite, bucket: str, rights: str, lasts: timedelta = timedelta(hours=1)) -> Sas:
    return Sas(key_of(azurite).sas(rights, "c", bucket, datetime.now(UTC) + lasts))


# --- objects


def test_another_client_reads_what_ferry_writes(azurite: Azurite, bucket: str) -> None:
    """The same bytes, headers and metadata; the answer, HEAD, GET and listing have the MD5, the ETag and the size."""
    data = b"\0\xffbytes" * 1000

    async def test(container: AzureContainer) -> None:
        sent = await container.put("a/b.jpg", data, digests(data), ATTRIBUTES, create=False)
        got = await container.get("a/b.jpg", "source")
        assert await got.response.read() == data
        assert got.attributes == ATTRIBUTES
        head = await container.head("a/b.jpg", "source")
        assert head is not None
        assert (sent.md5, sent.version, head.size) == (head.md5, head.version, len(data))
        assert head.md5 == hashlib.md5(data).hexdigest()
        listed = (await container.page("", "source")).objects
        assert listed == [head]
        assert got.info._replace(tier=head.tier) == head

    in_container(azurite, bucket, test)
    assert azurite.get(bucket, "a/b.jpg") == data
    there = azurite.attributes(bucket, "a/b.jpg")
    assert there == {name: " ".join(value.split()) if name == "x" else value for name, value in ATTRIBUTES.items()}


def test_what_azure_cannot_hold_is_told_and_not_sent(azurite: Azurite, bucket: str) -> None:
    """A name that is not a C# identifier is left out and named; the object is written with all others."""

    async def test(container: AzureContainer) -> None:
        named = {"ean-code": "1", "1st": "2", "Sku": "3", "a_b": "4", "a1": "5", "ab": "6", "name": "grün"}
        sent = await container.put("k", b"x", digests(b"x"), named, create=False)
        assert sent.lost == ("ean-code", "1st")
        attributes = (await container.get("k", "source")).attributes
        del attributes["Content-Type"]
        assert attributes == {"sku": "3", "a_b": "4", "a1": "5", "ab": "6", "name": "grün"}

    in_container(azurite, bucket, test)


def test_tier_and_tags(azurite: Azurite, bucket: str) -> None:
    """Both are written with the object, by one request or in blocks; a tier that was not set is not an attribute."""

    async def test(container: AzureContainer) -> None:
        given = {TIER: "Cool", TAGS: "a=b%20c&d=%2F"}
        await container.put("one", b"x", digests(b"x"), given, create=False)
        part = await container.put_part("parts", "0" * 16, 1, b"x", digests(b"x"), 0)
        await container.complete("parts", "0" * 16, [part], small_body(b"x"), given, create=False)
        for key in ("one", "parts"):
            got = await container.get(key, "source")
            assert got.tagged
            assert await container.tags(key, "source") == given[TAGS]
            head = await container.head(key, "source")
            assert head is not None
            assert head.tier == "Cool"
        await put(container, "plain")
        got = await container.get("plain", "source")
        assert not got.tagged
        assert TIER not in got.attributes

    in_container(azurite, bucket, test)


def test_a_wrong_digest_is_refused(azurite: Azurite, bucket: str) -> None:
    """Azure compares the MD5 of an object and of a block; nothing is stored."""

    async def test(container: AzureContainer) -> None:
        with pytest.raises(ObjectError) as caught:
            await container.put("k", b"sent", digests(b"other"), {}, create=False)
        assert caught.value.message == "the destination answered HTTP 400 (Md5Mismatch)"
        with pytest.raises(ObjectError, match="Md5Mismatch"):
            await container.put_part("k", "0" * 16, 1, b"sent", digests(b"other"), 0)
        assert await container.head("k", "source") is None

    in_container(azurite, bucket, test)


def test_of_32_creations_one_succeeds(azurite: Azurite, bucket: str) -> None:
    """All others are told that the key exists."""

    async def test(container: AzureContainer) -> None:
        bodies = [f"body {number}".encode() for number in range(32)]
        sent = await asyncio.gather(*(container.put("k", data, digests(data), {}, create=True) for data in bodies))
        won = [data for data, answer in zip(bodies, sent, strict=True) if not answer.exists]
        assert len(won) == 1
        assert await stored(container, "k") == won[0]

    in_container(azurite, bucket, test)


def test_reading_from_an_offset_and_of_one_version(azurite: Azurite, bucket: str) -> None:
    """A read continues where it ended, with the size and MD5 of the whole; another version is not read."""

    async def test(container: AzureContainer) -> None:
        await put(container, "k", b"0123456789")
        first = await container.get("k", "source")
        assert await first.response.read() == b"0123456789"
        assert first.info.version is not None
        rest = await container.get("k", "source", start=4, if_version=first.info.version)
        assert await rest.response.read() == b"456789"
        assert rest.info == first.info
        await put(container, "k", b"9876543210")
        with pytest.raises(ObjectError) as caught:
            await container.get("k", "source", start=4, if_version=first.info.version)
        assert caught.value.error_class is ErrorClass.TRUNCATED

    in_container(azurite, bucket, test)


def test_an_object_without_bytes(azurite: Azurite, bucket: str) -> None:
    """It is written, confirmed, listed, read and copied as any other."""

    async def test(container: AzureContainer) -> None:
        await put(container, "k", b"")
        assert await stored(container, "k") == b""
        [listed] = (await container.page("", "source")).objects
        assert (listed.size, listed.md5) == (0, hashlib.md5(b"").hexdigest())
        assert (await container.copy("copy", bucket, listed)).md5 == listed.md5

    in_container(azurite, bucket, test)


def test_a_confirmed_upload(azurite: Azurite, bucket: str) -> None:
    """The digest of the answer confirms it, in one request; an upload in blocks as well."""

    async def test(container: AzureContainer) -> None:
        policy, body = ReadBackPolicy(), small_body(b"abc")
        sent = await container.put("k", b"abc", digests(b"abc"), {}, create=False)
        assert (await confirm(Unasked(), policy, "k", body, sent)).method is Confirmed.DIGEST
        part = await container.put_part("k", "0" * 16, 1, b"abc", digests(b"abc"), 0)
        sent = await container.complete("k", "0" * 16, [part], body, {}, create=False)
        assert (await confirm(Unasked(), policy, "k", body, sent)).method is Confirmed.DIGEST

    in_container(azurite, bucket, test)


# --- keys and listings

ODD_KEYS = [
    "a//b", "a/./b", "a/../b", "a/.../b", "folder/", "/a", "a\nb", "a\tb", "a?b&c=d#e%f+g;h", "a%2Fb%252F",
    " a  b ", "<a>&amp;\"b'", "gr\u00fcn", "gru\u0308n", "\U0001f600/\U0001f468\u200d\U0001f469", "k" * 900,
    "a~b-c_d.e", "*", "x#1",
]  # fmt: skip


def test_odd_keys_are_kept_as_they_are(azurite: Azurite, bucket: str) -> None:
    """Each is written, found, read, listed and deleted byte for byte.

    (Azurite folds a backslash, and cannot list what XML cannot hold: tests/ferry/storage/test_azure.py has that.)
    """

    async def test(container: AzureContainer) -> None:
        for key in ODD_KEYS:
            await put(container, key, key.encode())
        assert sorted(each.key for each in (await container.page("", "source")).objects) == sorted(ODD_KEYS)
        for key in ODD_KEYS:
            assert await stored(container, key) == key.encode()
        assert sorted(azurite.keys(bucket)) == sorted(ODD_KEYS)
        await container.delete([*ODD_KEYS, "missing"], "destination")

    in_container(azurite, bucket, test)
    assert azurite.keys(bucket) == []


def test_a_listing_in_pages(azurite: Azurite, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of three keys have every key once, below a prefix, and after a key."""
    keys = [f"p/{key}" for key in ODD_KEYS]
    monkeypatch.setattr("ferry.storage.azure.container.PAGE_KEYS", 3)

    async def listed(container: AzureContainer, prefix: str, after: str | None = None) -> list[str]:
        found, token = [], None
        while True:
            page = await container.page(prefix, "source", after=after, token=token)
            assert len(page.objects) <= 3
            found += [each.key for each in page.objects]
            if (token := page.token) is None:
                return found

    async def test(container: AzureContainer) -> None:
        await asyncio.gather(*(put(container, key) for key in [*keys, "o", "q"]))
        assert sorted(await listed(container, "p/")) == sorted(keys)
        assert sorted(await listed(container, "")) == sorted([*keys, "o", "q"])
        middle = sorted(keys)[8]
        assert sorted(await listed(container, "p/", middle)) == sorted(keys)[9:]

    in_container(azurite, bucket, test)


# --- copies


def test_a_copy_by_the_server(azurite: Azurite, bucket: str) -> None:
    """It has the bytes, attributes, tags and tier of its source, and Azure answers with its MD5."""

    async def test(container: AzureContainer) -> None:
        given = {**ATTRIBUTES, TIER: "Cool", TAGS: "a=b"}
        await container.put("an odd/k\u00e9y?&", b"abc", digests(b"abc"), given, create=False)
        [source] = (await container.page("", "source")).objects
        sent = await container.copy("copy", bucket, source)
        assert sent.md5 == source.md5
        got = await container.get("copy", "source")
        assert await got.response.read() == b"abc"
        assert got.attributes == ATTRIBUTES
        assert await container.tags("copy", "source") == "a=b"
        head = await container.head("copy", "source")
        assert head is not None
        assert (head.version, head.tier) == (sent.version, "Cool")

    in_container(azurite, bucket, test)


def test_a_copy_with_a_sas(azurite: Azurite, bucket: str) -> None:
    """The SAS authorises the source as well; without the right to read it, the caller has to."""

    async def test(container: AzureContainer) -> None:
        await put(container, "k", b"abc")
        [source] = (await container.page("", "source")).objects
        assert (await container.copy("copy", bucket, source)).md5 == source.md5
        await container.delete(["copy"], "destination")

    async def blind(container: AzureContainer) -> None:
        source = ObjectInfo("k", 3, '"0x1"', None)
        with pytest.raises(CannotCopy):
            await container.copy("copy", bucket, source)

    in_container(azurite, bucket, test, sas(azurite, bucket, "rlwdt"))
    in_container(azurite, bucket, blind, sas(azurite, bucket, "w"))


def test_a_copy_of_what_has_changed_is_not_made(azurite: Azurite, bucket: str) -> None:
    """Another ETag, a missing source, and more than 256 MiB: the caller reads and writes.

    (Azurite does not compare the source's MD5: tests/ferry/storage/test_azure.py has that.)
    """

    async def test(container: AzureContainer) -> None:
        await put(container, "k", b"abc")
        [source] = (await container.page("", "source")).objects
        wrong = [
            source._replace(etag='"0x1"'),
            source._replace(key="missing"),
            source._replace(size=256 * MIB + 1),
            source._replace(etag=None),
        ]
        for each in wrong:
            with pytest.raises(CannotCopy):
                await container.copy("copy", bucket, each)
        assert await container.head("copy", "source") is None

    in_container(azurite, bucket, test)


# --- uploads in blocks


def test_an_upload_in_blocks(azurite: Azurite, bucket: str) -> None:
    """The object has the body's bytes, MD5 and attributes; a repeated completion is one more success."""
    data = secrets.token_bytes(2 * MIB + 7)

    async def test(container: AzureContainer) -> None:
        upload = await container.begin("k", ATTRIBUTES, len(data), md5=None, create=True)
        assert upload is not None
        pieces = [data[start : start + MIB] for start in range(0, len(data), MIB)]
        parts = await asyncio.gather(
            *(
                container.put_part("k", upload, number, piece, digests(piece), (number - 1) * MIB)
                for number, piece in enumerate(pieces, 1)
            )
        )
        assert await container.parts("k", upload) == list(parts)
        body = small_body(data)
        sent = await container.complete("k", upload, parts, body, ATTRIBUTES, create=True)
        assert (sent.md5, sent.in_parts) == (body.md5, True)
        assert (await container.complete("k", upload, parts, body, ATTRIBUTES, create=False)).md5 == body.md5
        assert (await container.complete("k", upload, parts, body, ATTRIBUTES, create=True)).exists
        got = await container.get("k", "source")
        assert (got.info.md5, got.attributes) == (body.md5, ATTRIBUTES)
        assert await got.response.read() == data

    in_container(azurite, bucket, test)


def test_parts_that_are_not_the_whole_body_are_never_completed(azurite: Azurite, bucket: str) -> None:
    """A part that is missing, or of another size, is found before the request."""

    async def test(container: AzureContainer) -> None:
        parts = [await container.put_part("k", "0" * 16, n, b"abc", digests(b"abc"), 0) for n in (1, 2)]
        for wrong, size in ((parts[1:], 3), (parts, 7), (parts[::-1], 6)):
            with pytest.raises(ObjectError) as caught:
                await container.complete("k", "0" * 16, wrong, Body(size, "0" * 32, ""), {}, create=False)
            assert caught.value.error_class is ErrorClass.UPLOAD_UNCONFIRMED
        assert await container.head("k", "source") is None

    in_container(azurite, bucket, test)


def test_blocks_of_another_upload_are_not_taken(azurite: Azurite, bucket: str) -> None:
    """Two uploads to one key do not mix; an upload without blocks is not known; abort leaves the object alone."""

    async def test(container: AzureContainer) -> None:
        mine = await container.put_part("k", "a" * 16, 1, b"mine", digests(b"mine"), 0)
        await container.put_part("k", "b" * 16, 1, b"other", digests(b"other"), 0)
        assert await container.parts("k", "a" * 16) == [mine]
        assert await container.parts("k", "c" * 16) is None
        assert await container.parts("nothing", "a" * 16) is None
        await container.abort("k", "b" * 16)
        assert [each async for each in container.uploads("")] == []
        await container.complete("k", "a" * 16, [mine], small_body(b"mine"), {}, create=True)
        assert await stored(container, "k") == b"mine"
        assert await container.parts("k", "b" * 16) is None  # Put Block List discards all others

    in_container(azurite, bucket, test)


KILLED = """
import asyncio, os, sys
from tests.stores.test_azure import digests
from ferry.storage.azure import AzureContainer, SharedKey

async def main(account, key, url, bucket, upload):
    container = AzureContainer(account, bucket, SharedKey(account, key), endpoint_url=url)
    for number in (1, 2):
        data = bytes([number]) * 1000
        await container.put_part("k", upload, number, data, digests(data), 0)
    os.kill(os.getpid(), 9)

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_killed_upload_continues(azurite: Azurite, bucket: str) -> None:
    """Another process finds the parts that were sent, with their MD5s, and sends the rest alone."""
    upload = "0123456789abcdef"
    given = [azurite.account, azurite.account_key, azurite.endpoint_url, bucket, upload]
    killed = subprocess.run([sys.executable, "-c", KILLED, *given], check=False)
    assert killed.returncode == -9
    assert azurite.open_uploads(bucket) == ["k"]

    async def test(container: AzureContainer) -> None:
        pieces = [bytes([number]) * 1000 for number in (1, 2, 3)]
        there = await container.parts("k", upload)
        assert there is not None
        assert [(part.number, part.size, part.md5) for part in there] == [
            (number, 1000, digests(piece).md5) for number, piece in enumerate(pieces[:2], 1)
        ]
        last = await container.put_part("k", upload, 3, pieces[2], digests(pieces[2]), 2000)
        body = small_body(b"".join(pieces))
        await container.complete("k", upload, [*there, last], body, {}, create=True)
        assert await stored(container, "k") == body.data

    in_container(azurite, bucket, test)
    assert azurite.open_uploads(bucket) == []


@pytest.mark.slow
def test_a_large_body_within_memory(azurite: Azurite, bucket: str, tmp_path: Path) -> None:
    """300 MB from the spool in blocks of 8 MiB, and back as a stream, take no more than 60 MB."""
    path, size = tmp_path / "spool", 300_000_000
    md5 = hashlib.md5()
    with path.open("wb") as file:
        for number in range(300):
            block = bytes([number % 251]) * 1_000_000
            md5.update(block)
            file.write(block)
    before = forget_peak()

    async def test(container: AzureContainer) -> None:
        step, parts = container.part_bytes(size), []
        with path.open("rb") as file:
            whole = Spooled(file.fileno(), size)
            for number, start in enumerate(range(0, size, step), 1):
                part = whole.slice(start, min(step, size - start))
                file.seek(start)
                taken = digests(file.read(len(part)))
                parts.append(await container.put_part("k", "0" * 16, number, part, taken, start))
        body = Body(size, md5.hexdigest(), "", path=path)
        assert (await container.complete("k", "0" * 16, parts, body, {}, create=True)).md5 == body.md5
        got, back = await container.get("k", "source"), hashlib.md5()
        while piece := await got.response.read_chunk():
            back.update(piece)
        assert back.hexdigest() == body.md5

    in_container(azurite, bucket, test)
    assert peak_bytes() - before < 60_000_000


# --- files of a state


def test_files_of_a_state(azurite: Azurite, bucket: str) -> None:
    """A file is created once, and replaced only while it is unchanged."""

    async def test(container: AzureContainer) -> None:
        assert await container.read("f") is None
        assert await container.write_if("f", b"1", None)
        assert not await container.write_if("f", b"2", None)
        found = await container.read("f")
        assert found is not None
        assert found[0] == b"1"
        results = await asyncio.gather(*(container.write_if("f", b"%d" % n, found[1]) for n in range(8)))
        assert sum(results) == 1
        assert not await container.write_if("missing", b"1", found[1])

    in_container(azurite, bucket, test)


# --- credentials and refusals


def test_the_preflight_of_a_container(azurite: Azurite, bucket: str) -> None:
    """It is silent for a container that can be used, and leaves nothing there."""

    async def test(container: AzureContainer) -> None:
        assert await container.refusal("p", writing=True) is None
        assert await container.refusal("", writing=False) is None

    in_container(azurite, bucket, test)
    in_container(azurite, bucket, test, sas(azurite, bucket, "rlw"))
    assert azurite.keys(bucket) == azurite.open_uploads(bucket) == []


def test_a_missing_container(azurite: Azurite) -> None:
    """Preflight, reads and writes say so; an object that is missing is another matter."""

    async def test(container: AzureContainer) -> None:
        refusal = await container.refusal("p", writing=True)
        assert refusal == "does not exist. Create it, or correct its address in the job"
        with pytest.raises(Fatal, match=r"the destination container does not exist \(HTTP 404 ContainerNotFound\)"):
            await container.put("k", b"x", digests(b"x"), {}, create=False)
        with pytest.raises(Fatal, match="the state container does not exist"):
            await container.read("k")
        with pytest.raises(ObjectError) as caught:
            await container.head("k", "source")
        assert caught.value.error_class is ErrorClass.NOT_FOUND

    in_container(azurite, "no-such-container", test)


@pytest.mark.parametrize(
    ("rights", "lacks"),
    [
        ("rl", "`w` (write)"),
        ("w", "`l` (list) and `r` (read)"),
    ],
)
def test_a_sas_without_a_right(rights: str, lacks: str, azurite: Azurite, bucket: str) -> None:
    """The preflight names the right; a request that needs it is Refused."""

    async def test(container: AzureContainer) -> None:
        assert await container.refusal("p", writing=True) == (
            f"cannot be used with this SAS, which lacks {lacks}. Make one with all of `r`, `l` and, to write, `w`"
        )
        if "w" not in rights:
            with pytest.raises(Refused, match="HTTP 403 AuthorizationPermissionMismatch"):
                await container.put("k", b"x", digests(b"x"), {}, create=False)

    in_container(azurite, bucket, test, sas(azurite, bucket, rights))


def test_a_right_that_only_azure_knows_to_be_missing(azurite: Azurite, bucket: str) -> None:
    """Where the SAS itself does not say what it lacks, each right is tried."""

    class Silent(Sas):
        def lacks(self, rights: object) -> list[str]:
            return []

    async def test(container: AzureContainer) -> None:
        refusal = await container.refusal("p", writing=True)
        assert refusal == (
            "refuses to write with these credentials (HTTP 403 AuthorizationPermissionMismatch). They need `w` in a "
            "SAS or the role Storage Blob Data Contributor, and the account's network rules must allow this machine"
        )

    query = key_of(azurite).sas("rl", "c", bucket, datetime.now(UTC) + timedelta(hours=1))
    in_container(azurite, bucket, test, Silent(query))


def test_a_sas_that_ends(azurite: Azurite, bucket: str) -> None:
    """One that has ended, and one that ends before the run will, are told before anything moves; during a run the
    error says that it has ended."""

    async def test(container: AzureContainer) -> None:
        assert "which ended at " in (await container.refusal("p", writing=True) or "")
        with pytest.raises(Fatal, match=r"the credentials have expired \(HTTP 403 \w+\)"):
            await container.put("k", b"x", digests(b"x"), {}, create=False)

    in_container(azurite, bucket, test, sas(azurite, bucket, "rlw", -timedelta(minutes=30)))
    query = key_of(azurite).sas("rlw", "c", bucket, now := datetime.now(UTC) + timedelta(hours=1))
    access = AzureAccess(secret=query)
    assert ends_too_early(access, "source.credentials", now - timedelta(hours=1)) is None
    told = ends_too_early(access, "source.credentials", now + timedelta(hours=1)) or ""
    assert "source.credentials: this SAS ends at " in told
    assert query not in told


def test_a_wrong_key(azurite: Azurite, bucket: str) -> None:
    """It is Fatal at the destination, and the row's failure at the source; the key is in no message."""
    other = base64.b64encode(b"another key").decode()

    async def test(container: AzureContainer) -> None:
        refusal = await container.refusal("p", writing=True)
        assert refusal is not None
        assert refusal.startswith("refuses")
        with pytest.raises(Fatal, match="the destination refuses the credentials"):
            await container.put("k", b"x", digests(b"x"), {}, create=False)
        with pytest.raises(ObjectError) as caught:
            await container.get("k", "source")
        assert caught.value.error_class is ErrorClass.FORBIDDEN
        assert other not in f"{refusal} {caught.value}"

    in_container(azurite, bucket, test, SharedKey(azurite.account, other))


def test_no_credentials(azurite: Azurite, bucket: str) -> None:
    """A private container refuses them."""

    async def test(container: AzureContainer) -> None:
        with pytest.raises(Fatal, match="refuses the credentials"):
            await container.put("k", b"x", digests(b"x"), {}, create=False)

    in_container(azurite, bucket, test, Authority())


# --- tokens


@pytest.fixture
def entra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entra]:
    yield from started(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def azurite_https() -> Iterator[AzuriteHttps]:
    if (reason := AzuriteHttps.missing()) is not None:
        pytest.skip(reason)
    with AzuriteHttps() as server, pytest.MonkeyPatch.context() as patch:
        assert server.certificate is not None
        patch.setenv("SSL_CERT_FILE", str(server.certificate))
        tls.cache_clear()
        server.make_bucket("tokens")
        yield server
    tls.cache_clear()


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("managed identity", "resource=https"),
        ("workload identity", "client_assertion=a+pod%27s+token"),
        ("service principal", "client_secret=canary-secret"),
    ],
)
def test_azure_takes_the_token_of_an_identity(
    kind: str, asked: str, azurite_https: AzuriteHttps, entra: Entra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for once, and authorises requests and the source of a copy."""

    async def go() -> None:
        tokens = Tokens(identities(entra, tmp_path, monkeypatch)[kind])
        container = AzureContainer(azurite_https.account, "tokens", tokens, endpoint_url=azurite_https.endpoint_url)
        assert await container.refusal("p", writing=True) is None
        assert (await container.put("k", b"abc", digests(b"abc"), {}, create=False)).md5 == digests(b"abc").md5
        [source] = (await container.page("", "source")).objects
        assert (await container.copy("copy", "tokens", source)).md5 == digests(b"abc").md5
        await container.delete(["k", "copy"], "destination")
        await container.close()

    asyncio.run(go())
    assert len(entra.asked) == 1
    assert asked in entra.asked[0]


def test_a_token_that_has_ended(azurite_https: AzuriteHttps) -> None:
    """Azure refuses it; another one is asked for once, and the request is sent again."""
    lives = [-5.0, 3600.0]

    async def go() -> None:
        tokens = Tokens(lambda: Fixed(jwt(lives.pop(0))))
        container = AzureContainer(azurite_https.account, "tokens", tokens, endpoint_url=azurite_https.endpoint_url)
        assert (await container.put("k", b"abc", digests(b"abc"), {}, create=False)).md5 == digests(b"abc").md5
        assert lives == []
        lives.extend([-5.0, -5.0])
        tokens = Tokens(lambda: Fixed(jwt(lives.pop(0))))
        ended = AzureContainer(azurite_https.account, "tokens", tokens, endpoint_url=azurite_https.endpoint_url)
        with pytest.raises(Fatal, match=r"the destination refuses the credentials \(HTTP 403 AuthenticationFailed\)"):
            await ended.put("k", b"abc", digests(b"abc"), {}, create=False)
        await container.close()
        await ended.close()

    asyncio.run(go())
    assert lives == []
