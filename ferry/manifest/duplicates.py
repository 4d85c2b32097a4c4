"""Which rows of a list are equal to earlier ones, in bounded memory: row digests in buckets on disk.

Tried first: DuckDB's GROUP BY over a file of digests, which runs out of its 256 MB at 100 million rows.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Sequence
from heapq import merge
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_BUCKETS = 256  # by the digest's first byte: 100 million rows make 0.4 million each
_FLUSH_BYTES = 64 * 1024  # of one bucket
_READ_RECORDS = 4096
_SEEN = struct.Struct("<16sq")  # digest, position
_REPEAT = struct.Struct("<qq")  # position, n


class Numbering:
    """A context: digests of all rows are added in order, then :meth:`repeats` names those seen before.

    ``work`` is a directory of its own, gone afterwards. 128 bits of a SHA-256 stand for a row: two
    different ones that agree in them do not occur.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._held = [bytearray() for _ in range(_BUCKETS)]
        self._added = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(mode=0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._work, ignore_errors=True)

    def add(self, digests: Sequence[bytes]) -> None:
        """The next rows' SHA-256 digests."""
        pack, held, files = _SEEN.pack, self._held, self._work
        for position, digest in enumerate(digests, self._added):
            bucket = held[digest[0]]
            bucket += pack(digest, position)  # the first 16 bytes of the digest
            if len(bucket) >= _FLUSH_BYTES:
                _append(files / f"{digest[0]}.seen", bucket)
        self._added += len(digests)

    def repeats(self) -> Iterator[tuple[int, int]]:
        """``(position, n)`` of each row that was seen before, n times, in order of position (from 0)."""
        found = [path for bucket in range(_BUCKETS) if (path := self._count(bucket)) is not None]
        yield from merge(*(_records(path, _REPEAT) for path in found))

    def _count(self, bucket: int) -> Path | None:
        """The file of a bucket's repeats; None when it has none. Memory: a bucket's distinct rows."""
        path = self._work / f"{bucket}.repeats"
        counts: dict[bytes, int] = {}
        out = bytearray()
        seen = self._work / f"{bucket}.seen"
        for source in (_records(seen, _SEEN) if seen.exists() else (), _SEEN.iter_unpack(self._held[bucket])):
            for digest, position in source:
                n = counts.get(digest, 0)
                counts[digest] = n + 1
                if n:
                    out += _REPEAT.pack(position, n)
                    if len(out) >= _FLUSH_BYTES:
                        _append(path, out)
        self._held[bucket] = bytearray()
        if out:
            _append(path, out)
        return path if path.exists() else None


def _append(path: Path, held: bytearray) -> None:
    with path.open("ab") as file:
        file.write(held)
    held.clear()


def _records(path: Path, record: struct.Struct) -> Iterator[Any]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(record.size * _READ_RECORDS):
            yield from record.iter_unpack(chunk)
