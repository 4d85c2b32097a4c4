"""Reading of a chunk: its rows in slices, and what the plan knows of them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import pyarrow as pa

from ferry.core import Confirmed, Damaged, KnownCopy, Outcome, Revalidate, Status, TransferResult
from ferry.ratelimit import host_of
from ferry.state import ChunkRef, State, read_table, rows_of, verified_path
from ferry.storage import ObjectInfo
from ferry.transfer.chunk_queue import PendingRow


class ChunkRows:
    """The rows of a chunk that are to do, read from its table in slices."""

    def __init__(self, table: pa.Table, done: Set[str], recorded: Set[str]) -> None:
        """``done`` are the IDs of rows that the plan knows as done, ``recorded`` those that this process has done."""
        self._table = table
        self._done = done
        self._recorded = recorded
        self._at = 0

    @property
    def unread(self) -> int:
        return len(self._table) - self._at

    def take(self, count: int) -> list[PendingRow] | None:
        """Returns the rows to do among the next ``count`` rows, or None at the end."""
        if not self.unread:
            return None
        rows = rows_of(self._table.slice(self._at, count))
        self._at += len(rows)
        to_do = [row for row in rows if row.row_id not in self._done and row.row_id not in self._recorded]
        return [PendingRow(row, host_of(row.source)) for row in to_do]


ADVICE = "Run the job again: the next plan writes its rows to new chunks"


@dataclass(frozen=True, slots=True)
class Hints:
    """What the plan knows of a chunk's rows, by row ID."""

    found: dict[str, ObjectInfo] = field(default_factory=dict)  # existing objects at the destination
    known: dict[str, KnownCopy] = field(default_factory=dict)  # copies that are to be rechecked
    done: set[str] = field(default_factory=set)  # rows that need no further work
    in_ledger: dict[str, TransferResult] = field(default_factory=dict)  # copies of other rows with the row's digest


def read_chunk(state: State, ref: ChunkRef) -> tuple[pa.Table, Hints]:
    """Returns the rows of a chunk, and what the plan knows of them. Raises Damaged."""
    table, hints = _table(state, ref.uri), Hints()
    if not ref.hints:
        return table, hints
    keys = dict(zip(table.column("row_id").to_pylist(), table.column("key").to_pylist(), strict=True))
    for hint in _table(state, ref.hints).to_pylist():
        row_id = hint["row_id"]
        if hint["done"]:
            hints.done.add(row_id)
            continue
        if hint["dest_size"] is not None:
            hints.found[row_id] = ObjectInfo(keys[row_id], hint["dest_size"], hint["dest_etag"], None)
        if hint["revalidate"] is not None:
            hints.known[row_id] = KnownCopy(
                Revalidate(hint["revalidate"]), hint["key"], hint["size"], hint["md5"], hint["sha256"],
                hint["content_type"], hint["etag"], hint["last_modified"], hint["known_etag"], hint["bytes_read_at"],
                Confirmed(hint["confirmed"]) if hint.get("confirmed") else None, hint.get("address"),
                hint.get("attributes_sha256"), hint.get("lost_attributes"),
            )  # fmt: skip
        elif hint["key"] is not None:
            hints.in_ledger[row_id] = TransferResult(
                Status.COPIED, hint["key"], hint["size"], hint["md5"], hint["sha256"], hint["content_type"],
                dest_etag=hint["known_etag"], bytes_read_at=hint["bytes_read_at"],
                confirmed=Confirmed(hint["confirmed"]), attributes_sha256=hint.get("attributes_sha256"),
            )  # fmt: skip
    return table, hints


def repeated_apart(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Returns the rows of a chunk in two tables: those whose digest an earlier row has by the manifest in the second.

    Once the first are done, the objects of the others are at the destination.
    """
    seen: set[str] = set()
    rows: tuple[list[int], list[int]] = ([], [])
    columns = (table.column(name).to_pylist() for name in ("sha256", "md5"))
    for at, (sha256, md5) in enumerate(zip(*columns, strict=True)):
        digest = sha256 or md5
        rows[digest is not None and digest in seen].append(at)
        seen.add(digest)
    first, later = (table.take(pa.array(places, pa.int64())) for places in rows)
    return first, later


def _table(state: State, name: str) -> pa.Table:
    try:
        return read_table(verified_path(state, name, ADVICE))
    except FileNotFoundError:
        raise Damaged(f"state file {name} is missing. {ADVICE}") from None


def with_known_copy(outcome: Outcome, known: KnownCopy) -> Outcome:
    """Returns the outcome of a failed recheck with the facts of the copy, which has not changed."""
    return outcome._replace(
        key=known.key, size=known.size, md5=known.md5, sha256=known.sha256, content_type=known.content_type,
        source_etag=known.etag, source_last_modified=known.last_modified, dest_etag=known.dest_etag,
        bytes_read_at=known.bytes_read_at, confirmed=known.confirmed, address=known.address,
        attributes_sha256=known.attributes_sha256, lost_attributes=known.lost_attributes,
        message=f"{outcome.message}; the earlier copy is still at the destination",
    )  # fmt: skip
