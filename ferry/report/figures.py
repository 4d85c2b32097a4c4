"""What a report counts: queries of the folded ledger (:func:`ferry.state.folded_ledger`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from ferry.core import ErrorClass
from ferry.job import Job, PublicUrl
from ferry.state import PLAIN_WORDS, REMEDIES, FailureFilter, FailureGroup, failure_groups, host_sql

if TYPE_CHECKING:
    import duckdb

POINTS = 200  # of a graph over time, at most
WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
HOSTS, FAILING, FORMATS = 25, 12, 12  # lines of these tables; the others are summed up
GROUPS = 5  # hosts of an error class with examples
SAMPLES = 6
_BY_TRANSFER = "coalesce(l.chunk, '') NOT IN ('', 'verify')"  # not by planning, pruning or a verification


def create_rows(con: duckdb.DuckDBPyConnection) -> None:
    """Creates `report_rows`, which the other functions read: a line per row of the manifest, with its latest outcome.

    A row in `waiting` has no outcome that counts, as in :func:`ferry.state.count`. Seconds are NULL for outcomes
    without a request, or without one of their times.
    """
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE report_rows AS
        SELECT coalesce(nullif(l.status, 'removed'), 'pending') AS status, l.size, l.content_type, l.confirmed,
               {host_sql("coalesce(l.address, l.source)")} AS host, l.recorded_at, l.run_no,
               CASE WHEN l.requests > 0 AND l.recorded_at >= l.started_at
                    THEN epoch(l.recorded_at) - epoch(l.started_at) END AS seconds,
               {_BY_TRANSFER} AS by_transfer
        FROM manifest m LEFT JOIN (SELECT * FROM latest ANTI JOIN waiting USING (row_id)) l USING (row_id)
        """
    )


@dataclass(frozen=True, slots=True)
class Timeline:
    """Outcomes of one run over time, in buckets of ``width_s`` seconds; the first one begins at ``start``."""

    run_no: int
    start: datetime
    width_s: int
    rows: list[int]
    failed: list[int]
    bytes: list[int]

    @property
    def total(self) -> int:
        """Rows whose latest outcome is of this run."""
        return sum(self.rows)

    def at(self, bucket: int) -> datetime:
        """Returns when a bucket begins."""
        return self.start + timedelta(seconds=bucket * self.width_s)


def width_for(span_s: float) -> int:
    """Returns the seconds of a bucket, so that ``span_s`` has at most POINTS of them, and 80 if it is long enough."""
    return next((width for width in WIDTHS_S if span_s < width * POINTS), math.ceil((span_s + 1) / POINTS))


def plotted_runs(con: duckdb.DuckDBPyConnection) -> list[int]:
    """Returns the runs whose course is shown: the one with the most rows in the ledger, and the last one."""
    counts = dict(
        con.execute(
            "SELECT run_no, count(*) FROM report_rows WHERE by_transfer AND recorded_at IS NOT NULL GROUP BY 1"
        ).fetchall()
    )
    return sorted({max(counts, key=lambda run: (counts[run], run)), max(counts)}) if counts else []


def not_transferred(con: duckdb.DuckDBPyConnection) -> dict[int, int]:
    """Returns by run how many outcomes are of its planning or pruning, or of a verification: no course has them."""
    return dict(con.execute(f"SELECT run_no, count(*) FROM latest l WHERE NOT {_BY_TRANSFER} GROUP BY 1").fetchall())


def timeline(con: duckdb.DuckDBPyConnection, run_no: int) -> Timeline:
    """Returns the course of a run that :func:`plotted_runs` named."""
    where = "WHERE by_transfer AND run_no = ? AND recorded_at IS NOT NULL"
    first, last = con.execute(
        f"SELECT epoch(min(recorded_at)), epoch(max(recorded_at)) FROM report_rows {where}", [run_no]
    ).fetchall()[0]
    width = width_for(last - first)
    start = first // width * width
    buckets = int((last - start) // width) + 1
    found = Timeline(
        run_no, datetime.fromtimestamp(start, UTC), width, [0] * buckets, [0] * buckets, [0] * buckets
    )  # fmt: skip
    for bucket, rows, failed, size in con.execute(
        f"""
        SELECT CAST(floor((epoch(recorded_at) - ?) / ?) AS INTEGER), count(*), count(*) FILTER (status = 'failed'),
               coalesce(sum(size) FILTER (status = 'copied'), 0)
        FROM report_rows {where} GROUP BY 1
        """,
        [start, width, run_no],
    ).fetchall():
        found.rows[bucket], found.failed[bucket], found.bytes[bucket] = rows, failed, int(size)
    return found


class HostLine(NamedTuple):
    """Rows of one host. The seconds are from an object's first request to its outcome; None if none has both times."""

    host: str
    rows: int
    failed: int
    bytes: int
    median_s: float | None
    p95_s: float | None
    most_s: float | None


_HOST_FIGURES = """count(*), count(*) FILTER (status = 'failed'),
    coalesce(sum(size) FILTER (status IN ('copied', 'unchanged')), 0),
    quantile_cont(seconds, 0.5), quantile_cont(seconds, 0.95), max(seconds)"""


def by_host(con: duckdb.DuckDBPyConnection) -> tuple[list[HostLine], int, HostLine | None]:
    """Returns the HOSTS hosts with the most rows, how many others there are, and the sum of these."""
    lines = con.execute(
        f"""
        WITH done AS (SELECT * FROM report_rows WHERE status <> 'pending'), ranked AS (
            SELECT host, row_number() OVER (ORDER BY count(*) DESC, host) AS place FROM done GROUP BY 1
        )
        SELECT CASE WHEN place <= {HOSTS} THEN host END AS name, {_HOST_FIGURES}, count(DISTINCT host), min(place)
        FROM done JOIN ranked USING (host) GROUP BY 1 ORDER BY 9
        """
    ).fetchall()
    others = [line for line in lines if line[0] is None]
    named = [HostLine(*line[:7]) for line in lines if line[0] is not None]
    return named, others[0][7] if others else 0, HostLine("", *others[0][1:7]) if others else None


def failing_hosts(con: duckdb.DuckDBPyConnection) -> list[tuple[str, int, int]]:
    """Returns ``(host, failed rows, rows with an outcome)`` of the FAILING hosts with the most failures."""
    return con.execute(
        f"""
        SELECT host, count(*) FILTER (status = 'failed') AS failed, count(*) FROM report_rows WHERE status <> 'pending'
        GROUP BY 1 HAVING failed > 0 ORDER BY 2 DESC, 1 LIMIT {FAILING}
        """
    ).fetchall()


def sizes(con: duckdb.DuckDBPyConnection) -> list[tuple[int, int, int]]:
    """Returns ``(from, to, objects)`` in bytes, in steps of 1, 2, 5, 10, ..., without a hole between first and last."""
    counts = dict(
        con.execute(
            """
            WITH s AS (SELECT size, floor(log10(size)) AS k FROM report_rows
                       WHERE status IN ('copied', 'unchanged') AND size > 0)
            SELECT CAST(k * 3 + CASE WHEN size >= 5 * pow(10, k) THEN 2 WHEN size >= 2 * pow(10, k) THEN 1 ELSE 0 END
                        AS INTEGER), count(*) FROM s GROUP BY 1
            """
        ).fetchall()
    )
    steps = range(min(counts), max(counts) + 1) if counts else ()
    return [(_edge(step), _edge(step + 1), counts.get(step, 0)) for step in steps]


def _edge(step: int) -> int:
    """Returns 1, 2, 5, 10, 20, ... for 0, 1, 2, 3, 4, ..."""
    return int((1, 2, 5)[step % 3] * 10 ** (step // 3))


def formats(con: duckdb.DuckDBPyConnection) -> list[tuple[str, int, int]]:
    """Returns ``(media type, objects, bytes)``, the most frequent first; types after FORMATS are one line."""
    lines = con.execute(
        f"""
        WITH types AS (
            SELECT coalesce(nullif(content_type, ''), 'not recorded') AS type, count(*) AS objects,
                   coalesce(sum(size), 0) AS bytes, row_number() OVER (ORDER BY objects DESC, type) AS place
            FROM report_rows WHERE status IN ('copied', 'unchanged') GROUP BY 1
        )
        SELECT CASE WHEN place <= {FORMATS} THEN type END, sum(objects), sum(bytes), count(*)
        FROM types GROUP BY 1 ORDER BY min(place)
        """
    ).fetchall()
    return [
        (f"{others:,} other types" if name is None else name, int(rows), int(size))
        for name, rows, size, others in lines
    ]


_PROOFS = {
    "digest": "the destination answered with the digest of the bytes that were sent",
    "read_back": "the object was read back and had the digest of the bytes that were sent",
    "size": "the destination confirmed the size alone",
    None: "not recorded: found at the destination, or moved by an earlier version",
}


def proofs(con: duckdb.DuckDBPyConnection) -> list[tuple[str, int, int]]:
    """Returns ``(how the stored objects were confirmed, objects, bytes)``."""
    found = con.execute(
        """
        SELECT confirmed, count(*), coalesce(sum(size), 0) FROM report_rows WHERE status IN ('copied', 'unchanged')
        GROUP BY 1 ORDER BY 2 DESC
        """
    ).fetchall()
    return [(_PROOFS.get(name, name), rows, int(size)) for name, rows, size in found]


@dataclass(slots=True)
class FailedClass:
    """The failures of one class. ``groups`` are the first GROUPS of its hosts and status codes."""

    name: str
    words: str
    remedy: str
    retryable: bool
    rows: int = 0
    groups: list[FailureGroup] = field(default_factory=list)
    other_groups: int = 0
    other_rows: int = 0


def failures(con: duckdb.DuckDBPyConnection) -> list[FailedClass]:
    """Returns the failures by class, those with the most rows first."""
    found: dict[str, FailedClass] = {}
    for group in failure_groups(con, FailureFilter()):
        error = ErrorClass(group.error_class)
        known = found.setdefault(error, FailedClass(error, PLAIN_WORDS[error], REMEDIES[error], group.retryable))
        known.rows += group.rows
        if len(known.groups) < GROUPS:
            known.groups.append(group)
        else:
            known.other_groups += 1
            known.other_rows += group.rows
    return sorted(found.values(), key=lambda known: (-known.rows, known.name))


class Sampled(NamedTuple):
    """A stored object: its old address (redacted), its key, and its new address if the job has `public_url`."""

    source: str
    key: str
    size: int | None
    sha256: str | None
    public: str | None


def samples(con: duckdb.DuckDBPyConnection, job: Job) -> list[Sampled]:
    """Returns some stored objects, to be opened by hand. They are the same in each report: the first by `row_id`."""
    columns = {"key": "l.key", "id": "l.id"}
    public = PublicUrl.parse(job.public_url).sql(columns) if job.public_url else "NULL"
    found = con.execute(
        f"""
        SELECT coalesce(l.address, l.source, ''), l.key, l.size, l.sha256, {public}
        FROM latest l SEMI JOIN manifest USING (row_id) ANTI JOIN waiting USING (row_id)
        WHERE l.status IN ('copied', 'unchanged') ORDER BY l.row_id LIMIT {SAMPLES}
        """
    ).fetchall()
    return [Sampled(*line) for line in found]


def sums(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Returns ``bytes`` of all stored objects, ``hosts`` with an outcome, and ``seconds``: whether any row has them."""
    found: Sequence[Any] = con.execute(
        """
        SELECT coalesce(sum(size) FILTER (status IN ('copied', 'unchanged')), 0),
               count(DISTINCT host) FILTER (status <> 'pending'), count(seconds) > 0 FROM report_rows
        """
    ).fetchall()[0]
    return {"bytes": int(found[0]), "hosts": found[1], "seconds": found[2]}
