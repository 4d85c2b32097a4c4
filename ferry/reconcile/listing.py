"""A listing of the destination beside the ledger, in memory that depends on neither (`ferry verify --list`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ferry.core import Outcome
from ferry.reconcile.sample import SHOULD_EXIST
from ferry.state import State, folded_ledger, outcomes_of, row_ranges
from ferry.storage import ObjectInfo

if TYPE_CHECKING:
    import duckdb

LINES = 50_000  # of a listing, in memory at a time
ROWS_AT_ONCE = 250_000  # of the ledger, that are joined with the listing
_S = pa.string()
_LISTED = pa.schema([("key", _S), ("size", pa.int64()), ("etag", _S), ("md5", _S), ("modified", _S)])


def load_listing(con: duckdb.DuckDBPyConnection, pages: Iterable[Sequence[ObjectInfo]]) -> None:
    """Creates `listed`, with the objects of a complete listing of the destination."""
    con.execute("CREATE TABLE listed (key VARCHAR, size BIGINT, etag VARCHAR, md5 VARCHAR, modified VARCHAR)")
    for batch in _batches(pages):
        con.register("page", batch)
        con.execute("INSERT INTO listed SELECT * FROM page")
        con.unregister("page")


def _batches(pages: Iterable[Sequence[ObjectInfo]]) -> Iterator[pa.Table]:
    lines: list[tuple[Any, ...]] = []
    for page in pages:
        lines += [
            (o.key, o.size, o.etag, o.md5, o.last_modified.isoformat() if o.last_modified else None) for o in page
        ]
        if len(lines) >= LINES:
            yield _table(lines)
            lines = []
    if lines:
        yield _table(lines)


def _table(lines: Sequence[tuple[Any, ...]]) -> pa.Table:
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*lines, strict=True), _LISTED, strict=True)],
        schema=_LISTED,
    )


def beside_listing(
    state: State, pages: Iterable[Sequence[ObjectInfo]], rows_each: int
) -> Iterator[tuple[list[Outcome], dict[str, ObjectInfo]]]:
    """Yields the outcomes of about ``rows_each`` rows that should have an object, and by key what is listed of these.

    The ledger is read as it is when the first rows are asked for: outcomes that are written meanwhile do not count.
    """
    with folded_ledger(state) as con:
        load_listing(con, pages)
        (rows,) = con.execute("SELECT count(*) FROM latest").fetchall()[0]
        for each in row_ranges(rows, ROWS_AT_ONCE):
            con.execute(
                f"""
                CREATE OR REPLACE TEMP TABLE expected AS
                SELECT l.row_id, l.key FROM latest l SEMI JOIN (SELECT row_id FROM manifest WHERE {each.condition()}) m
                USING (row_id) WHERE {SHOULD_EXIST} AND {each.condition("l.row_id")}
                """
            )
            con.execute(
                """
                CREATE OR REPLACE TEMP TABLE found AS
                SELECT e.row_id, o.key AS listed_key, o.size AS listed_size, o.etag AS listed_etag, o.md5 AS listed_md5
                FROM expected e LEFT JOIN listed o USING (key)
                """
            )
            reader: Any = con.sql(
                f"SELECT * FROM latest JOIN found USING (row_id) WHERE {each.condition()}"
            ).to_arrow_reader(rows_each)
            for batch in reader:
                yield _beside(pa.Table.from_batches([batch]))


def _beside(table: pa.Table) -> tuple[list[Outcome], dict[str, ObjectInfo]]:
    listed = table.select(["listed_key", "listed_size", "listed_etag", "listed_md5"])
    found = {
        key: ObjectInfo(key, size, etag, None, md5)
        for key, size, etag, md5 in zip(*(column.to_pylist() for column in listed.columns), strict=True)
        if key is not None
    }
    return list(outcomes_of(table)), found
