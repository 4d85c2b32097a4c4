"""Counts of the manifest's rows by state, and the check of their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ferry.core import ErrorClass, FerryError
from ferry.state.error_words import PLAIN_WORDS

if TYPE_CHECKING:
    import duckdb


LOST_NAMES = 20  # metadata may have any number of names


@dataclass(slots=True)
class Counts:
    """Rows of the current manifest by state; planned = copied + unchanged + skipped + failed + pending."""

    planned: int = 0
    copied: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    pending: int = 0
    bytes: int = 0  # of copied rows
    duplicates: int = 0  # of the skipped rows
    retryable: int = 0  # of the failed rows
    by_size: dict[str, int] = field(default_factory=dict)  # status -> copied or unchanged rows confirmed by size alone
    lesser_checks: int = 0  # copied or unchanged rows that got a lesser check than `checks`; their message names it
    deduped: dict[str, int] = field(default_factory=dict)  # as :func:`count_deduped` returns it
    classes: dict[str, int] = field(default_factory=dict)  # error class -> failed, skipped or pending rows
    lost_attributes: dict[str, int] = field(default_factory=dict)  # attribute -> copied rows without it, most first
    lost_more: int = 0  # other names of attributes that rows are without

    def check(self) -> None:
        """Raises FerryError when a row is in no state or in two: that is a bug, and the run must not succeed."""
        total = self.copied + self.unchanged + self.skipped + self.failed + self.pending
        if total != self.planned:
            raise FerryError(
                f"the row counts do not add up: {self.planned:,} planned, but {total:,} = {self.copied:,} copied + "
                f"{self.unchanged:,} unchanged + {self.skipped:,} skipped + {self.failed:,} failed + "
                f"{self.pending:,} pending. Please report this and keep the state's outcomes/ and ledger/"
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# Over outcomes `l` of copied and unchanged rows: what :func:`count_deduped` returns
_DEDUPED = """count(l.copy_of), coalesce(sum(l.size) FILTER (l.copy_of IS NOT NULL), 0),
    coalesce(sum(l.size) FILTER (l.copy_of IS NOT NULL AND l.requests = 0), 0)"""


# Rows are matched by 128 bits of their ID, so that a join's table has 16 bytes a row in place of 64 digits, and 100 M
# rows fit into DuckDB's memory (docs/decisions/0070). 64 bits would meet by chance in one of some thousand such jobs.
_KEY = "hash(row_id[:32]) AS h1, hash(row_id[33:]) AS h2"
_LISTED = f"(SELECT {_KEY} FROM manifest)"
_ENDED = "latest ANTI JOIN waiting USING (row_id)"


def count(con: duckdb.DuckDBPyConnection) -> Counts:
    """Counts the rows of `manifest` by state, from `latest` and `waiting` (:func:`ferry.state.queries.folded_ledger`).

    A row in `waiting` is pending. ``planned`` is counted separately from the states, so that :meth:`Counts.check` can
    fail.
    """
    counts = Counts()
    (counts.planned,) = con.execute("SELECT count(*) FROM manifest").fetchall()[0]
    (counts.pending,) = con.execute(
        f"SELECT count(*) FROM {_LISTED} ANTI JOIN (SELECT {_KEY} FROM {_ENDED}) USING (h1, h2)"
    ).fetchall()[0]
    columns = "status, error_class, size, retryable, confirmed, message, copy_of, requests"
    lines = con.execute(
        f"""
        SELECT coalesce(nullif(l.status, 'removed'), 'pending'), l.error_class, count(*), coalesce(sum(l.size), 0),
               count(*) FILTER (l.retryable), count(*) FILTER (l.confirmed = 'size'),
               count(l.message), {_DEDUPED}
        FROM (SELECT {_KEY}, {columns} FROM {_ENDED}) l SEMI JOIN {_LISTED} USING (h1, h2)
        GROUP BY 1, 2
        """
    ).fetchall()
    for status, error_class, rows, size, retryable, by_size, messages, *deduped in lines:
        setattr(counts, status, getattr(counts, status) + rows)
        if status == "copied":
            counts.bytes += int(size)
        if status in ("copied", "unchanged"):
            counts.lesser_checks += messages
            if deduped[0]:
                counts.deduped = {name: counts.deduped.get(name, 0) + n for name, n in _named(deduped).items()}
            if by_size:
                counts.by_size[status] = counts.by_size.get(status, 0) + by_size
        if status == "failed":
            counts.retryable += retryable
        if error_class is not None:
            counts.classes[error_class] = counts.classes.get(error_class, 0) + rows
        if error_class == ErrorClass.DUPLICATE:
            counts.duplicates += rows
    lost = con.execute(
        f"""
        SELECT name, count(*), count(*) OVER () FROM (
            SELECT unnest(lost_attributes) AS name
            FROM (SELECT {_KEY}, status, lost_attributes FROM {_ENDED}) SEMI JOIN {_LISTED} USING (h1, h2)
            WHERE status IN ('copied', 'unchanged') AND lost_attributes IS NOT NULL
        ) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {LOST_NAMES}
        """
    ).fetchall()
    counts.lost_attributes = {name: rows for name, rows, _ in lost}
    counts.lost_more = lost[0][2] - len(lost) if lost else 0
    return counts


def count_deduped(con: duckdb.DuckDBPyConnection, run_no: int) -> dict[str, int]:
    """Counts the rows of a run that got bytes which Ferry had stored for another row; empty if there is none.

    ``bytes`` are theirs: not uploaded, or not downloaded, or neither. ``not_downloaded`` are those of the last two.
    """
    done = "l.status IN ('copied', 'unchanged')"
    found = con.execute(f"SELECT {_DEDUPED} FROM latest l WHERE {done} AND l.run_no = ?", [run_no]).fetchall()[0]
    return _named(found) if found[0] else {}


def _named(deduped: Sequence[int]) -> dict[str, int]:
    return dict(zip(("rows", "bytes", "not_downloaded"), map(int, deduped), strict=True))


def outcome_table(counts: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Returns ``(outcome, description, rows)``: successes first, then skipped rows, then failures by number."""
    by_size = counts["by_size"]
    lines = [
        (status, words, rows)
        for status, words, rows in (
            ("copied", "uploaded and confirmed", counts["copied"] - by_size.get("copied", 0)),
            ("copied", "uploaded, confirmed by size alone", by_size.get("copied", 0)),
            ("unchanged", "already there, the same bytes", counts["unchanged"] - by_size.get("unchanged", 0)),
            ("unchanged", "already there, confirmed by size alone", by_size.get("unchanged", 0)),
        )
        if rows
    ]
    skipped = counts["skipped"]
    classes = sorted(counts["classes"].items(), key=lambda item: (-item[1], item[0]))
    duplicates = counts["duplicates"]
    if duplicates:
        lines.append(("skipped", PLAIN_WORDS[ErrorClass.DUPLICATE], duplicates))
    if skipped > duplicates:
        lines.append(("skipped", "key taken at the destination", skipped - duplicates))
    failed = counts["failed"]
    for name, rows in classes:
        if name in (ErrorClass.DUPLICATE, ErrorClass.MISSING, ErrorClass.ALTERED):
            continue
        if name == ErrorClass.EXISTS:
            rows -= skipped - duplicates
        if rows > 0 and failed:
            lines.append(("failed", f"{PLAIN_WORDS[ErrorClass(name)]}  [{name}]", rows))
    if counts["pending"]:
        lines.append(("pending", "no outcome yet", counts["pending"]))
    return lines
