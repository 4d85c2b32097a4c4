"""Old and new addresses of the objects that a job has stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ferry.core import UserError, short
from ferry.job import Job, PublicUrl, default_key
from ferry.state import ROWS_AT_ONCE, Spooled, row_ranges

if TYPE_CHECKING:
    import duckdb

# The address of a web server; other old addresses (a bucket's, a file's) are not what visitors asked for
_WEB = "CASE WHEN old SIMILAR TO '(?i)https?://.*' THEN old END"


# Rows with their latest outcome. ``{latest}``, ``{rows}``: the part of `latest`, and of the manifest, that has them.
_ROWS = """(
    SELECT m.row_no, row_id, m.source, list_concat([m.source], coalesce(m.alternatives, [])) AS asked,
           m.key AS planned_key, l.id, l.key, l.status, l.error_class, l.size, l.md5, l.sha256, l.content_type,
           l.source AS shown_source, l.address AS copied_from, m.alternatives AS others
    FROM {latest} l JOIN {rows} m USING (row_id)
)"""
_COPIES = f"""
    SELECT * EXCLUDE (planned_key, error_class) FROM {_ROWS} WHERE status IN ('copied', 'unchanged')
"""
_REPEATED = f"""
    SELECT r.row_no, r.row_id, r.source, r.asked, r.id, d.key, r.status, d.size, d.md5, d.sha256, d.content_type,
           r.shown_source, d.copied_from, d.others
    FROM {_ROWS} r JOIN {_ROWS} d USING (source, planned_key)
    WHERE r.error_class = 'duplicate' AND d.status IN ('copied', 'unchanged')
"""


def create_addresses(con: duckdb.DuckDBPyConnection, job: Job, at_once: int = ROWS_AT_ONCE) -> None:
    """Creates `addresses`, with a line for each old address of each row that has a copy.

    ``con`` is that of :func:`ferry.state.folded_ledger`. A duplicate row has the copy of the row that it repeats. A row
    with several addresses has a line for each.

    | column | content |
    |---|---|
    | `row_id`, `row_no`, `id` | the row, its number in the manifest, the user's ID |
    | `source`, `shown_source` | the row's address, byte for byte: it may hold a signature; and as reports show it |
    | `old_url` | the address under which visitors asked for the object; NULL if that is not known |
    | `status` | of the row |
    | `key` | the key of the copy below the destination's prefix |
    | `size`, `md5`, `sha256`, `content_type` | the copy, by the ledger |
    | `copied_from`, `others` | the further address that the copy is of, as reports show it; all further addresses |
    | `destination` | the URI of the copy, nothing in it percent-encoded |
    | `public_url` | the address under which visitors get the copy; NULL if that is not known |

    It is in files beside what ``con`` spills, one for each ``at_once`` rows, each sorted by row number; they are
    deleted with that temporary directory. Raises UserError if `public_url` gives two keys one address.
    """
    roots = sorted(job.roots(), key=len, reverse=True)

    def key_of(source: str) -> str:
        with contextlib.suppress(ValueError):  # a row that could not be read as an address, and has no copy
            return source_key(source, roots)
        return ""  # NULL in SQL: DuckDB refuses None of a function

    con.create_function("source_key", key_of, ["VARCHAR"], "VARCHAR")
    new = "NULL::VARCHAR"
    if job.public_url is not None:
        new = PublicUrl.parse(job.public_url).sql({"key": "key", "id": "nullif(id, '')"})
    root = job.destination.uri_of("").replace("'", "''")
    made = Spooled(con, "addresses", "row_no")
    for copies in _copies(con, at_once):
        made.add(f"""
            SELECT DISTINCT * EXCLUDE (address, old), {_WEB} AS old_url
            FROM (SELECT *, {old_address(job)} AS old, '{root}' || key AS destination, {new} AS public_url
                  FROM (SELECT * EXCLUDE (asked), unnest(asked) AS address FROM ({copies})))
        """)
    con.execute(f"CREATE OR REPLACE TEMP VIEW addresses AS FROM {made.sql()}")
    refuse_shared(con)


def _copies(con: duckdb.DuckDBPyConnection, at_once: int) -> Iterator[str]:
    """Yields SQL for the rows that have a copy, and for the duplicates of such rows."""
    (rows,) = con.execute("SELECT coalesce(max(row_no), 0) FROM manifest").fetchall()[0]
    ranges, manifest = row_ranges(rows, at_once), "manifest"
    if len(ranges) > 1:
        by_id = Spooled(con, "rows", "row_id")
        for first in range(1, rows + 1, at_once):
            by_id.add(f"SELECT * FROM manifest WHERE row_no BETWEEN {first} AND {first + at_once - 1}")
        manifest = by_id.sql()
    for part in ranges:
        latest, rows_of_part = (f"(SELECT * FROM {name} WHERE {part.condition()})" for name in ("latest", manifest))
        yield _COPIES.format(latest=latest, rows=rows_of_part)
    con.execute("""
        CREATE OR REPLACE TEMP TABLE repeats AS SELECT row_id FROM latest WHERE error_class = 'duplicate';
        CREATE OR REPLACE TEMP TABLE repeated AS
        SELECT * FROM manifest SEMI JOIN (
            SELECT source, key FROM manifest SEMI JOIN repeats USING (row_id)
        ) same ON same.source = manifest.source AND same.key = manifest.key
    """)
    yield _REPEATED.format(latest="latest", rows="repeated")


def create_uncopied(con: duckdb.DuckDBPyConnection, job: Job) -> None:
    """Creates `uncopied`, with a line (`row_id`, `old_url`) for each old address of each row without a copy.

    ``con`` is that of :func:`create_addresses`, which has run.
    """
    con.execute(
        f"""
        CREATE OR REPLACE TABLE uncopied AS
        WITH each AS (
            SELECT row_id, source, id,
                   unnest(list_concat([source], coalesce(alternatives, []))) AS address
            FROM manifest ANTI JOIN (SELECT hash(row_id) AS id FROM addresses) a ON a.id = hash(row_id)
        )
        SELECT DISTINCT row_id, {_WEB} AS old_url FROM (SELECT *, {old_address(job)} AS old FROM each)
        """
    )


def old_address(job: Job) -> str:
    """Returns SQL for the old address of `address`, one of the addresses of a row with `source` and `id`."""
    if job.source.public_url is None:
        return "address"
    return PublicUrl.parse(job.source.public_url).sql({"key": "nullif(source_key(source), '')", "id": "nullif(id, '')"})


def refuse_shared(con: duckdb.DuckDBPyConnection) -> None:
    """Raises UserError if two keys have one public address."""
    shared = con.execute(
        """
        WITH several AS (
            SELECT hash(public_url) AS hash FROM addresses GROUP BY 1 HAVING min(hash(key)) <> max(hash(key))
        )
        SELECT public_url, min(key), max(key), count(*) OVER () FROM addresses
        WHERE public_url IS NOT NULL AND hash(public_url) IN (FROM several)
        GROUP BY 1 HAVING min(key) <> max(key) ORDER BY 1 LIMIT 1
        """
    ).fetchall()
    if shared:
        url, one, other, more = shared[0]
        others = f" {more:,} addresses are shared." if more > 1 else ""
        raise UserError(
            f"public_url gives `{short(one)}` and `{short(other)}` one address, {short(url, 200)}.{others} Write a "
            "template that differs for each key, such as one with {key}"
        )


def source_key(source: str, roots: list[str]) -> str:
    """Returns the key of a source below the first of ``roots`` that holds it, else :func:`default_key`.

    | source | roots | key |
    |---|---|---|
    | `s3://old/images/a/1.jpg` | `s3://old/images/` | `a/1.jpg` |
    | `file:///srv/images/1.jpg` | `file:///srv/images/` | `1.jpg` |
    | `https://origin.internal/img/a%20b.jpg` | | `img/a b.jpg` |
    """
    below = next((source[len(root) :] for root in roots if source.startswith(root)), None)
    return default_key(source) if below is None else below
