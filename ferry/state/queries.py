"""What people ask of a job's state: failures, the map from old address to new key. Safe during a run."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ferry.core import Damaged, UserError
from ferry.state import ledger
from ferry.state.checksums import verified_path
from ferry.state.files import State
from ferry.state.plan_file import Plan, read_plan

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")
FAILURE_COLUMNS = (
    "id", "source", "key", "error_class", "status_code", "message", "attempt", "requests", "retryable", "recorded_at",
)  # fmt: skip
# What terminals and editors take for orders, or do not show; XML 1.0 (section 2.2) has no place for half of it.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ufffe\uffff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: full width
# Where Windows says that lists are separated by `;` Excel splits a .csv there, and no quotes around the cell help.
_FORMULA_INSIDE = re.compile(r"([;|])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def with_latest(state: State, work: Callable[[duckdb.DuckDBPyConnection, str], T], spool_dir: Path | None = None) -> T:
    """Calls ``work(connection, manifest path)`` with the folded ledger in table ``latest``, and in ``waiting`` the rows
    that stand in the ledger as settled, and that the plan wants moved once more.

    What does not fit into memory goes to ``spool_dir``; else to a temporary directory, since a reader may have no
    right to write to the state. Raises UserError when nothing is planned yet, Damaged for a file of the ledger.
    """

    def read() -> T:
        plan = read_plan(state)
        if plan is None:
            raise UserError("nothing is planned yet; start with `ferry run`")
        manifest = verified_path(state, plan.manifest["file"], "The next `ferry run` makes it anew from the list")
        ledger.refuse_lost_ledger(state)
        with tempfile.TemporaryDirectory(prefix="ferry-read-") as scratch:
            con = ledger.connect(spool_dir or Path(scratch))
            try:
                ledger.create_latest(con, state, plan.since_run)
                _load_waiting(con, state, plan)
                return work(con, str(manifest))
            finally:
                con.close()

    return ledger.reading(read)


def _load_waiting(con: duckdb.DuckDBPyConnection, state: State, plan: Plan) -> None:
    """Rows that a chunk holds for another attempt which has no outcome yet: their key has another writer since, other
    settings may not skip them, the row that they repeated left the list, or (in a delta) nobody has looked yet whether
    they are still true. A failed one among them is failed until it has another end."""
    paths = []
    for chunk in plan.chunks:
        if chunk.kind == "retry":
            with contextlib.suppress(FileNotFoundError, Damaged):  # planning cuts its rows anew
                paths.append(str(verified_path(state, chunk.uri, "")))
    con.execute("CREATE TABLE waiting (row_id VARCHAR)")
    if paths:
        con.execute(
            """
            INSERT INTO waiting SELECT DISTINCT c.row_id FROM read_parquet(?, union_by_name = true) c
            JOIN latest l USING (row_id)
            WHERE c.reason IN ('new', 'changed', 'revalidate') AND c.attempt > l.attempt
                  AND l.status IN ('copied', 'unchanged', 'skipped')
            """,
            [paths],
        )


def select_failures(
    con: duckdb.DuckDBPyConnection,
    manifest: str,
    classes: Sequence[str] = (),
    limit: int | None = None,
    chunk: str = "",
) -> tuple[list[dict[str, Any]], int]:
    """Failed rows of the current manifest, the first ``limit``, and how many there are.

    ``classes``: error classes or status codes; empty takes all. ``chunk``: what the digest of their chunk begins with.
    """
    matching = """
        FROM latest l SEMI JOIN read_parquet($manifest) m USING (row_id)
        WHERE l.status = 'failed' AND starts_with(coalesce(l.chunk, ''), $chunk)
          AND (len($classes) = 0 OR list_contains($classes, l.error_class)
               OR list_contains($classes, CAST(l.status_code AS VARCHAR)))
    """
    given: dict[str, Any] = {
        "manifest": manifest,
        "chunk": chunk,
        "classes": [str(name) for name in classes] or [""][:0],
    }
    if not given["classes"]:
        matching = matching.partition("AND (len")[0]
        del given["classes"]
    (total,) = con.execute(f"SELECT count(*) {matching}", given).fetchall()[0]
    cursor = con.execute(
        f"""
        SELECT l.id, l.source, l.key, l.error_class, l.status_code, l.message, l.attempt, l.requests, l.retryable,
               strftime(l.recorded_at, '%Y-%m-%dT%H:%M:%SZ')
        {matching} ORDER BY l.error_class, l.source, l.row_id {"" if limit is None else f"LIMIT {int(limit)}"}
        """,
        given,
    )
    return [dict(zip(FAILURE_COLUMNS, line, strict=True)) for line in cursor.fetchall()], int(total)


def select_wrong(con: duckdb.DuckDBPyConnection, manifest: str, limit: int) -> list[dict[str, str]]:
    """Rows that `ferry verify` found missing or altered and that no run has repaired since."""
    found = con.execute(
        """
        SELECT l.key, l.error_class, l.message FROM latest l SEMI JOIN read_parquet(?) m USING (row_id)
        WHERE l.status = 'pending' AND l.error_class IN ('missing', 'altered') ORDER BY l.key LIMIT ?
        """,
        [manifest, limit],
    ).fetchall()
    return [dict(zip(("key", "error_class", "message"), line, strict=True)) for line in found]


def spreadsheet_safe(value: Any) -> Any:
    """A cell that a spreadsheet will not take for a formula: text that starts like one gets a `'` in front.

    Control characters are escapes: a .csv is looked at in a terminal too, and a sheet cannot hold them.
    """
    if not isinstance(value, str):
        return value
    text = _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), value)
    return f"'{text}" if value.startswith(_FORMULA) else text


def failure_cell(value: Any) -> Any:
    """As :func:`spreadsheet_safe`, for cells that strangers wrote and nobody joins on: safe inside the cell, too."""
    safe = spreadsheet_safe(value)
    return _FORMULA_INSIDE.sub(r"\1'", safe) if isinstance(safe, str) else safe


def export(state: State, what: str, path: Path, *, full: bool) -> int:
    """Writes ``map`` (old address, new key, digests) or ``failures`` for people; returns the number of rows.

    The ending decides: csv, parquet or xlsx. ``full`` gives sources byte for byte, signatures included.
    The file appears under its name when it is whole, for the owner alone. Raises UserError for another ending, where
    it cannot be written, and for an xlsx of more rows than a sheet holds.
    """
    ending = path.suffix.lower().lstrip(".")
    if ending not in ("csv", "parquet", "xlsx"):
        raise UserError(f"{path.name}: the ending decides the format; write .csv, .parquet or .xlsx")
    source = "m.source" if full else "l.source"
    if what == "map":
        # A duplicate has the object of the row it repeats: whoever joins on `id` finds both.
        query = f"""
            WITH rows AS (
                SELECT m.row_no, m.source AS asked, m.key AS wanted, l.id, {source} AS source, l.key, l.status, l.size,
                       l.content_type, l.md5, l.sha256, l.error_class
                FROM latest l JOIN read_parquet(?) m USING (row_id)
            ), there AS (SELECT * FROM rows WHERE status IN ('copied', 'unchanged'))
            SELECT id, source, key, status, size, content_type, md5, sha256 FROM (
                SELECT * EXCLUDE (asked, wanted, error_class) FROM there
                UNION ALL
                SELECT d.row_no, d.id, d.source, t.key, d.status, t.size, t.content_type, t.md5, t.sha256
                FROM rows d JOIN there t USING (asked, wanted) WHERE d.error_class = 'duplicate'
            ) ORDER BY row_no
        """
    else:
        query = f"""
            SELECT l.id, {source} AS source, l.key, l.error_class, l.status_code, l.message, l.attempt, l.requests,
                   l.retryable, l.recorded_at
            FROM latest l JOIN read_parquet(?) m USING (row_id) WHERE l.status = 'failed' ORDER BY m.row_no
        """

    def work(con: duckdb.DuckDBPyConnection, manifest: str, path: Path) -> int:
        con.execute("SET preserve_insertion_order = true")
        con.execute(f"CREATE OR REPLACE TABLE export AS {query}", [manifest])
        (rows,) = con.execute("SELECT count(*) FROM export").fetchall()[0]
        if ending == "parquet":
            con.execute(f"COPY export TO '{_quoted(path)}' (FORMAT parquet, COMPRESSION zstd)")
            return int(rows)
        frame = con.execute("SELECT * FROM export").df()
        safe = failure_cell if what == "failures" else spreadsheet_safe
        for name in frame.columns:
            if frame[name].dtype == object or str(frame[name].dtype) in ("str", "string"):
                frame[name] = frame[name].map(safe, na_action="ignore")
        if ending == "csv":
            frame.to_csv(path, index=False)
            return int(rows)
        if rows > 1_048_575:
            raise UserError(f"{rows:,} rows do not fit into a sheet (1,048,575); write .csv or .parquet")
        if "recorded_at" in frame.columns:  # Excel has no time zones
            frame["recorded_at"] = frame["recorded_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        frame.to_excel(path, index=False)
        return int(rows)

    try:
        with tempfile.TemporaryDirectory(prefix=".ferry-export-", dir=path.absolute().parent) as folder:
            part = Path(folder) / path.name
            rows = with_latest(state, lambda con, manifest: work(con, manifest, part))
            part.chmod(0o600)  # with --full it holds signatures
            part.replace(path)
    except OSError as exc:
        raise UserError(f"cannot write {path}: {exc.strerror or exc}") from None
    return rows


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
