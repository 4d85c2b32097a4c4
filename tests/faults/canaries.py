"""Secrets that can be found again: seeded, and searched for in every spelling and under every packing that we write.

A canary is letters and digits alone, so that JSON, URLs, SQL and Markdown write it as it is; what packs it (Parquet
pages, gzip, zip, SQLite pages, base64) is undone first.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import random
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_DEEPEST = 4  # a gzip in a zip in a database is enough


class Canaries:
    """``make(name)`` gives the secret of that name; ``found_in(data)`` the names of those that ``data`` holds."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.values: dict[str, str] = {}
        self._names: dict[bytes, str] = {}  # spelling, in lower case -> name

    def make(self, name: str) -> str:
        if name not in self.values:
            value = f"{MARK}{self._rng.getrandbits(96):024x}"
            self.values[name] = value
            self._names.update(dict.fromkeys(_spellings(value), name))
        return self.values[name]

    def found_in(self, data: bytes) -> set[str]:
        """Names of the canaries in ``data``, whatever it is packed in."""
        return {name for text in unpacked(data) for name in self._seen(text.lower())}

    def _seen(self, text: bytes) -> Iterator[str]:
        """All spellings of one kind begin alike: the text is searched for those few beginnings alone."""
        for begin, size in _BEGINNINGS.items():
            at = text.find(begin)
            while at >= 0:
                if name := self._names.get(text[at : at + size]):
                    yield name
                at = text.find(begin, at + 1)


MARK = "cnrycnry"


def _spellings(value: str) -> list[bytes]:
    """The value itself, in UTF-16, in hex, and in base64 at each of its three offsets; in lower case."""
    raw = value.encode()
    # Of base64 only the digits that depend on the value alone: those at both ends hold bits of its neighbours.
    packed = [base64.b64encode(bytes(offset) + raw)[4 if offset else 0 : -4] for offset in range(3)]
    return [text.lower() for text in (raw, value.encode("utf-16-le"), raw.hex().encode(), *packed)]


def _beginnings() -> dict[bytes, int]:
    """What the spellings of each kind begin with -> how long they are."""
    kinds = zip(_spellings(MARK + "0" * 24), _spellings(MARK + "f" * 24), strict=True)
    return {one[: next(at for at in range(len(one)) if one[at] != other[at])]: len(one) for one, other in kinds}


_BEGINNINGS = _beginnings()


def unpacked(data: bytes, deep: int = 0) -> Iterator[bytes]:
    """``data`` as it is, and everything that it packs."""
    yield data
    if deep == _DEEPEST:
        return
    if data.startswith(b"PAR1"):
        yield _texts(pq.read_table(io.BytesIO(data)))
        yield repr(pq.read_schema(io.BytesIO(data)).metadata).encode()
    elif data.startswith(b"SQLite format 3\x00"):
        for cell in _cells(data):
            yield from unpacked(cell, deep + 1)
    elif data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from unpacked(archive.read(name), deep + 1)
    elif data.startswith(b"\x1f\x8b"):
        with contextlib.suppress(OSError, EOFError, zlib.error):
            yield from unpacked(gzip.decompress(data), deep + 1)
    elif data.startswith(b"\x28\xb5\x2f\xfd"):
        with contextlib.suppress(pa.ArrowException, OSError):
            yield from unpacked(pa.CompressedInputStream(io.BytesIO(data), "zstd").read(), deep + 1)
    elif data[:1] == b"\x78":
        with contextlib.suppress(zlib.error):
            yield from unpacked(zlib.decompress(data), deep + 1)


def _texts(table: pa.Table) -> bytes:
    """Every value of a table, a line each."""
    return "\n".join(repr(value) for column in table.columns for value in column.to_pylist()).encode(
        "utf-8", "surrogatepass"
    )


def _cells(database: bytes) -> Iterator[bytes]:
    """Every value in an SQLite database. A long one lies on several pages: raw bytes would not show it whole."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "copy.db")
        path.write_bytes(database)
        con = sqlite3.connect(path)
        con.text_factory = bytes
        try:
            for (table,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                with contextlib.suppress(sqlite3.DatabaseError):  # a virtual table whose module is not here
                    for row in con.execute(f'SELECT * FROM "{table.decode()}"'):
                        yield from (value for value in row if isinstance(value, bytes) and len(value) >= 16)
        finally:
            con.close()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name; a database with what its write-ahead log holds."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = path.read_bytes()
            if path.suffix == ".db":
                found[f"{path.relative_to(folder)} (whole)"] = _merged(path)
    return found


def _merged(path: Path) -> bytes:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source:
        return source.serialize()


def where_found(canaries: Canaries, pieces: Mapping[str, Any]) -> dict[str, set[str]]:
    """Piece -> names of the canaries in it (and in its name), for pieces that hold any."""
    found = {}
    for name, data in pieces.items():
        raw = data if isinstance(data, bytes) else str(data).encode("utf-8", "surrogatepass")
        seen = canaries.found_in(raw) | canaries.found_in(name.encode("utf-8", "surrogatepass"))
        if seen:
            found[name] = seen
    return found
