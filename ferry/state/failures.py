"""The failed rows of a job, counted by class and host, and one by one in the order of the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ferry.core import AGAIN, Again, ErrorClass

if TYPE_CHECKING:
    import duckdb

FAILURE_COLUMNS = (
    "id", "source", "key", "error_class", "status_code", "message", "attempt", "requests", "retryable", "recorded_at",
    "line", "host",
)  # fmt: skip
EXAMPLES = 3
LINES = 10_000  # in memory at a time


def host_sql(column: str) -> str:
    """Returns SQL for the host of a URL with its port, without userinfo (RFC 3986, section 3.2); or for the bucket."""
    return f"lower(regexp_extract(coalesce({column}, ''), '^[a-zA-Z][a-zA-Z0-9+.-]*://(?:[^/?#@]*@)?([^/?#]*)', 1))"


_HOST = host_sql("coalesce(l.address, l.source)")


@dataclass(frozen=True, slots=True)
class FailureFilter:
    """Which failed rows are wanted: all whose values are among the given ones. Empty: any."""

    classes: Sequence[str] = ()  # error classes and status codes
    host: str = ""  # `img.old.example`, with or without its port; or a bucket
    chunk: str = ""  # the first digits of the chunk's digest

    @property
    def sql(self) -> str:
        """The FROM and WHERE clauses for the tables of :func:`ferry.state.folded_ledger`."""
        return f"""
            FROM latest l JOIN manifest m USING (row_id)
            WHERE l.status = 'failed' AND starts_with(coalesce(l.chunk, ''), $chunk)
              AND (len($classes) = 0 OR list_contains($classes, l.error_class)
                   OR list_contains($classes, CAST(l.status_code AS VARCHAR)))
              AND ($host = '' OR {_HOST} = $host OR regexp_replace({_HOST}, ':[0-9]+$', '') = $host)
        """

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of the parameters in :attr:`sql`."""
        return {"classes": [str(name) for name in self.classes], "host": self.host.lower(), "chunk": self.chunk}


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed rows with one error class, status code and host."""

    error_class: str
    status_code: int | None
    host: str
    rows: int
    retryable: bool  # whether a plain run tries them again
    message: str  # of the first row
    examples: list[dict[str, Any]] = field(default_factory=list)  # line, id and source of the first rows


def failure_groups(con: duckdb.DuckDBPyConnection, wanted: FailureFilter) -> list[FailureGroup]:
    """Returns the groups of failed rows, those with most rows first. ``con`` is that of :func:`folded_ledger`."""
    found = con.execute(
        f"""
        SELECT l.error_class, l.status_code, {_HOST} AS host, count(*), arg_min(l.message, m.row_no),
               min_by({{'line': m.line_no, 'id': l.id, 'source': l.source}}, m.row_no, {EXAMPLES})
        {wanted.sql} GROUP BY ALL ORDER BY 4 DESC, 1, 2, 3
        """,
        wanted.parameters,
    )
    return [
        FailureGroup(error, status, host, rows, AGAIN[ErrorClass(error)] is not Again.NEVER, message, examples)
        for error, status, host, rows, message, examples in found.fetchall()
    ]


def select_failures(
    con: duckdb.DuckDBPyConnection, wanted: FailureFilter, limit: int | None = None
) -> list[dict[str, Any]]:
    """Returns the rows of :func:`iterate_failures` as a list."""
    return list(iterate_failures(con, wanted, limit))


def iterate_failures(
    con: duckdb.DuckDBPyConnection, wanted: FailureFilter, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the first ``limit`` failed rows in the order of the manifest. ``con`` is that of :func:`folded_ledger`.

    ``line`` is the line of the manifest's file where the row begins, or the row of a workbook; None for listings.
    """
    found = con.execute(
        f"""
        SELECT l.id, l.source, l.key, l.error_class, l.status_code, l.message, l.attempt, l.requests, l.retryable,
               strftime(l.recorded_at, '%Y-%m-%dT%H:%M:%SZ'), m.line_no, {_HOST}
        {wanted.sql} ORDER BY m.row_no {"" if limit is None else f"LIMIT {int(limit)}"}
        """,
        wanted.parameters,
    )
    while lines := found.fetchmany(LINES):
        for line in lines:
            yield dict(zip(FAILURE_COLUMNS, line, strict=True))
