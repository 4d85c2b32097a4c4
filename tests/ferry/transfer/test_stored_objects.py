"""The table of stored objects: what it finds, what it forgets, and which rows an object is right for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from ferry.core.records import Status, TransferResult
from ferry.images import kind_of_type
from ferry.images.web import Kind
from ferry.storage import ObjectInfo
from ferry.transfer.chunk_rows import repeated_apart
from ferry.transfer.dedupe import may_be_copied
from ferry.transfer.stored_objects import StoredObject, StoredObjects
from tests.support.helpers import make_row

MD5, SHA256 = "a" * 32, "b" * 64
JPEG = kind_of_type("image/jpeg")


def stored(md5: str = MD5, sha256: str | None = SHA256, kind: Kind | None = JPEG, **given: Any) -> StoredObject:
    values = {"size": 10, "content_type": "image/jpeg", "dest_etag": f'"{md5}"', **given}
    return StoredObject(
        TransferResult(Status.COPIED, "k", md5=md5, sha256=sha256, **values), {"Content-Type": "image/jpeg"}, kind, 0.0
    )


def numbered(number: int) -> StoredObject:
    return stored(f"{number:032x}", f"{number:064x}")


def test_objects_are_found_by_either_digest_and_the_oldest_is_forgotten() -> None:
    """The table finds by SHA-256 or MD5, and forgets the object that was stored or found the longest time ago."""
    table = StoredObjects(most=3)
    for number in range(3):
        table.add(numbered(number))
    assert table.find(None, f"{0:032x}") is table.find(f"{0:064x}") is not None
    table.add(numbered(3))
    assert [table.find(f"{n:064x}") is not None for n in range(4)] == [True, False, True, True]
    assert [table.find(None, f"{n:032x}") is not None for n in range(4)] == [True, False, True, True]
    assert len(table) == 3
    assert table.find(None) is table.find(None, None) is table.find("c" * 64, f"{2:032x}") is None
    table.add(stored(sha256=None))
    assert len(table) == 3


def test_an_md5_of_several_bodies_is_no_evidence() -> None:
    """Two bodies with one forged MD5 are found by their SHA-256s alone."""
    table = StoredObjects()
    one, other = stored(), stored(sha256="c" * 64)
    table.add(one)
    assert table.find(None, MD5) is one
    table.add(other)
    assert table.find(None, MD5) is None
    assert (table.find(SHA256), table.find("c" * 64)) == (one, other)
    table.forget(one)
    assert (table.find(SHA256), len(table)) == (None, 1)
    table.forget(one)
    assert table.find("c" * 64) is other


@pytest.mark.parametrize(
    ("row", "may_be"),
    [
        ({"md5": MD5}, True),
        ({"sha256": SHA256}, True),
        ({"sha256": SHA256, "md5": MD5, "size": 10}, True),
        ({}, False),
        ({"size": 10}, False),
        ({"md5": MD5, "size": 11}, False),
        ({"md5": MD5, "sha256": "c" * 64}, False),
        ({"md5": "c" * 32, "sha256": SHA256}, False),
    ],
)
def test_which_rows_an_object_may_be_for(row: dict[str, Any], may_be: bool) -> None:
    """An object may be a row's if the manifest has a digest, and contradicts in nothing that it says."""
    assert stored().may_be(make_row(1, **row)) is may_be


@pytest.mark.parametrize(
    ("source", "row", "given", "attributes", "same"),
    [
        ("https://h/x", {}, {}, {}, True),
        ("file:///h/x", {"content_type": "text/plain"}, {}, {}, True),  # the bytes show their type
        ("https://h/x", {}, {}, {"Cache-Control": "no-store"}, False),
        ("https://h/x", {}, {"kind": None}, {}, False),  # the type is in the source's response
        ("https://h/x", {"content_type": "image/jpeg"}, {"kind": None}, {}, True),
        ("https://h/x", {"content_type": "text/plain"}, {"kind": None}, {}, False),
    ],
)
def test_which_rows_get_an_object_s_attributes(
    source: str, row: dict[str, Any], given: dict[str, Any], attributes: dict[str, str], same: bool
) -> None:
    """A row's attributes are known before its download if its bytes or its manifest have its type, outside buckets."""
    assert stored(**given).is_what_the_row_gets(make_row(1, source, **row), attributes) is same


def info(size: int = 10, etag: str | None = f'"{MD5}"') -> ObjectInfo:
    return ObjectInfo("k", size, etag, datetime.now(UTC))


def test_what_is_still_the_object() -> None:
    """An object is intact if it has the size and the ETag, with or without quotes; without an ETag nothing shows it."""
    assert stored().is_intact(info())
    assert stored().is_intact(info(etag=MD5))
    for found in (None, info(size=11), info(etag=None), info(etag='"other"')):
        assert not stored().is_intact(found)
    assert not stored(dest_etag=None).is_intact(info(etag=None))


MOST = 5 << 30  # bytes that the server copies in one go


@pytest.mark.parametrize(
    ("given", "attributes", "may_be"),
    [
        ({}, {}, True),
        ({"dest_etag": f"{MD5}-2"}, {}, True),
        ({"dest_etag": '"opaque"'}, {}, True),
        ({"dest_etag": f'"{"c" * 32}"'}, {}, False),  # SSE-KMS
        ({"dest_etag": None}, {}, False),
        ({"size": MOST}, {}, True),
        ({"size": MOST + 1}, {}, False),
        ({}, {":tier": "GLACIER"}, False),
    ],
)
def test_which_objects_may_be_copied(given: dict[str, Any], attributes: dict[str, str], may_be: bool) -> None:
    """A server's copy is asked for only where it can be confirmed, and has all attributes."""
    assert may_be_copied(stored(**given).result, attributes, MOST) is may_be


def test_a_key_for_the_row() -> None:
    """A deferred key is completed from the object's digest and type."""
    row = make_row(1, key="{sha256}.{ext}", deferred_key=True)
    assert stored().key_for(row) == f"{SHA256}.jpg"
    assert stored(kind=None).key_for(row) == f"{SHA256}.bin"
    assert stored().key_for(make_row(1, key="{ext}")) == "{ext}"


def test_the_first_of_equal_bodies_goes_alone() -> None:
    """While no object with a digest is stored, one row stores it and the others wait; then all go on at once."""

    async def work() -> None:
        table, at_once, most = StoredObjects(), 0, []

        async def store(number: int) -> None:
            nonlocal at_once
            async with table.first(SHA256):
                at_once += 1
                await asyncio.sleep(0.01)
                most.append((at_once, number))
                at_once -= 1
                if number:  # the first one fails, and the next is the first one then
                    table.add(stored())

        await asyncio.wait_for(asyncio.gather(*(store(number) for number in range(6))), 5)
        assert [count for count, _ in most[:2]] == [1, 1]
        assert max(count for count, _ in most[2:]) == 4

    asyncio.run(work())


def test_rows_with_an_earlier_digest_come_apart() -> None:
    """Rows whose digest an earlier row has are in the second table; rows without a digest in the first."""
    rows: list[tuple[str | None, str | None]] = [
        ("x", None), (None, "m"), (None, None), ("x", "m"), (None, "m"), (None, None), ("y", "m"), (None, "x"),
    ]  # fmt: skip
    columns = {"n": list(range(8)), "sha256": [sha for sha, _ in rows], "md5": [md5 for _, md5 in rows]}
    first, later = repeated_apart(pa.table(columns))
    assert (first.column("n").to_pylist(), later.column("n").to_pylist()) == ([0, 1, 2, 5, 6], [3, 4, 7])
