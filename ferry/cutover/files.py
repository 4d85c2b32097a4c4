"""Files with the addresses of a job: tables for people, and redirects for web servers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ferry.core import UserError, redact
from ferry.cutover.addresses import create_addresses, create_uncopied
from ferry.cutover.redirects import TARGETS, LeftOut, Target, make_pairs
from ferry.job import Job
from ferry.state import ROWS_AT_ONCE, State, failure_cell, folded_ledger, spreadsheet_safe

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

TABLES = ("csv", "parquet", "xlsx")
FORMATS = (*TABLES, *TARGETS)
What = Literal["map", "failures"]
_SHEET_ROWS = 1_048_575
BATCH_VECTORS = 16  # of DuckDB, 2,048 rows each
GROUP_ROWS = 65_536  # of a Parquet file

# The address of `columns.source` that the ledger has in redacted form
_FULL_ADDRESS = "coalesce([each FOR each IN others IF redact(each) = copied_from][1], copied_from)"


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written."""

    rows: int
    format: str
    left_out: dict[str, int]
    notes: tuple[str, ...]  # sentences for the user: what is left out, how to use the file, limits


def format_of(path: Path, given: str | None, what: What) -> str:
    """Returns the format of a file, by its ending unless ``given``. Raises UserError if it cannot be used."""
    form = given or path.suffix.lower().lstrip(".")
    if given is None and form not in TABLES:
        raise UserError(
            f"{path.name}: the extension decides the format; use .csv, .parquet or .xlsx, or name a format of "
            f"redirects with --format: {', '.join(TARGETS)}"
        )
    if what == "failures" and form in TARGETS:
        raise UserError(f"--format {form} writes redirects; failures are written as csv, parquet or xlsx")
    return form


def export(
    state: State, job: Job, path: Path, *, at: datetime, what: What = "map", form: str | None = None, full: bool = False
) -> Exported:
    """Writes the `map` (old and new addresses, keys, digests), its redirects, or the `failures`.

    ``form`` is one of FORMATS; by default the extension decides: csv, parquet or xlsx. With ``full``, addresses are
    unredacted and may contain signatures. The file appears under its name once it is complete. Tables, and files with
    whole addresses, have mode 0600; redirects have the mode of new files, since servers read them as other users.

    Raises UserError for a job that was not planned, for addresses that cannot be used, for a file that cannot be
    written, and for more rows than the format can have.
    """
    form = format_of(path, form, what)
    target = TARGETS.get(form)
    if target is not None and job.public_url is None:
        raise UserError(
            f"--format {form} needs the new addresses: set `public_url` in the job, such as "
            "`public_url: https://img.new.example/{key}`"
        )
    private = full or target is None or target.sight.as_written
    with _whole_file(path, private=private) as part, folded_ledger(state) as con:
        if target is not None:
            return _redirects(con, job, target, part, at, full=full)
        return _table(con, job, what, form, part, full=full)


@contextlib.contextmanager
def _whole_file(path: Path, *, private: bool) -> Iterator[Path]:
    """Yields a name to write to. After the block the file has its own name; an error leaves none."""
    try:
        with tempfile.TemporaryDirectory(prefix=".ferry-export-", dir=path.absolute().parent) as folder:
            part = Path(folder) / path.name
            yield part
            if private:
                part.chmod(0o600)
            part.replace(path)
    except OSError as exc:
        raise UserError(
            f"cannot write {path}: {exc.strerror or exc}. Choose a file in a folder that exists and is writable"
        ) from None


def _redirects(
    con: duckdb.DuckDBPyConnection, job: Job, target: Target, path: Path, at: datetime, *, full: bool
) -> Exported:
    create_addresses(con, job)
    create_uncopied(con, job)
    pairs = make_pairs(con, job.name, at, target.sight, full=full)
    if not len(pairs):
        why = "; ".join(pairs.left_out.sentences()) or "the job has no row"
        raise UserError(f"there is nothing to redirect, so nothing is written: {why}")
    with path.open("wb") as out:
        notes = target.write(pairs, out)
    limits = [f"{limit.text} ({limit.source})" for limit in target.limits] if pairs.left_out.unfit else []
    return Exported(len(pairs), target.name, pairs.left_out.counts(), (*pairs.left_out.sentences(), *limits, *notes))


def _table(con: duckdb.DuckDBPyConnection, job: Job, what: What, form: str, path: Path, *, full: bool) -> Exported:
    """Writes a table of the map or of the failures."""
    con.execute("SET preserve_insertion_order = true")
    con.create_function("redact", redact, ["VARCHAR"], "VARCHAR")
    if what == "failures":
        source = "m.source" if full else "l.source"
        con.execute(
            f"""
            CREATE TABLE export AS
            SELECT l.id, {source} AS source, l.key, l.error_class, l.status_code, l.message, l.attempt, l.requests,
                   l.retryable, l.recorded_at, m.line_no AS line
            FROM latest l JOIN manifest m USING (row_id) WHERE l.status = 'failed' ORDER BY m.row_no
            """
        )
        return Exported(_write_table(con, ["FROM export"], path, form, failure_cell), form, {}, ())
    create_addresses(con, job, ROWS_AT_ONCE)
    source, address, old = (
        ("source", _FULL_ADDRESS, "old_url") if full else ("shown_source", "copied_from", "redact(old_url)")
    )
    # A duplicate has the key and digests of the row that it repeats, so that a join on `id` finds both. Of the
    # addresses of a row, its source is shown.
    queries = [
        f"""
        SELECT id, {source} AS source, key, status, size, content_type, md5, sha256, destination,
               {address} AS address, {old} AS old_url, public_url
        FROM (SELECT * FROM addresses WHERE row_no BETWEEN {first} AND {first + ROWS_AT_ONCE - 1}) a
        QUALIFY row_number() OVER (
            PARTITION BY row_id, key ORDER BY coalesce(a.old_url = a.source, false) DESC, a.old_url
        ) = 1 ORDER BY row_no
        """
        for first in range(1, 1 + _one(con, "SELECT coalesce(max(row_no), 1) FROM addresses"), ROWS_AT_ONCE)
    ]
    rows = _write_table(con, queries, path, form, spreadsheet_safe)
    without_copy = _one(
        con, "SELECT count(*) FROM manifest WHERE hash(row_id) NOT IN (SELECT hash(row_id) FROM addresses)"
    )
    left_out = LeftOut(without_copy=without_copy)
    return Exported(rows, form, {"without_copy": without_copy}, tuple(left_out.sentences()))


def _write_table(
    con: duckdb.DuckDBPyConnection, queries: Sequence[str], path: Path, form: str, safe: Callable[[Any], Any]
) -> int:
    """Writes the lines of queries with the same columns to a file, and returns their number.

    ``safe`` converts the cells of csv and xlsx.
    """
    if form == "parquet":
        return _write_parquet(con, queries, path)
    import pandas as pd

    heading = pd.DataFrame(columns=con.sql(queries[0]).columns)
    if form == "xlsx":
        rows = sum(_one(con, f"SELECT count(*) FROM ({query})") for query in queries)
        if rows > _SHEET_ROWS:
            raise UserError(
                f"{rows:,} rows do not fit into an .xlsx sheet ({_SHEET_ROWS:,} rows); use .csv or .parquet"
            )
        frame = _safe(pd.concat(list(_frames(con, queries)) or [heading]), safe)
        if "recorded_at" in frame.columns and rows:  # Excel has no time zones
            frame["recorded_at"] = frame["recorded_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        frame.to_excel(path, index=False)
        return rows
    rows = 0
    heading.to_csv(path, index=False)
    for frame in _frames(con, queries):
        _safe(frame, safe).to_csv(path, index=False, header=False, mode="a")
        rows += len(frame)
    return rows


def _frames(con: duckdb.DuckDBPyConnection, queries: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yields the lines of queries in batches: a list may be larger than the memory."""
    for query in queries:
        cursor = con.execute(query)
        while len(frame := cursor.fetch_df_chunk(BATCH_VECTORS)):
            yield frame


def _write_parquet(con: duckdb.DuckDBPyConnection, queries: Sequence[str], path: Path) -> int:
    import pyarrow.parquet as pq

    schema = con.sql(queries[0]).to_arrow_reader().schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        return sum(
            writer.write_batch(batch) or len(batch)
            for query in queries for batch in con.sql(query).to_arrow_reader(GROUP_ROWS)
        )  # fmt: skip


def _safe(frame: pd.DataFrame, safe: Callable[[Any], Any]) -> pd.DataFrame:
    """Returns the frame with each text converted by ``safe``."""
    for name in frame.columns:
        if frame[name].dtype == object or str(frame[name].dtype) in ("str", "string"):
            frame[name] = frame[name].map(safe, na_action="ignore")
    return frame


def _one(con: duckdb.DuckDBPyConnection, sql: str) -> int:
    ((value,),) = con.execute(sql).fetchall()
    return int(value)
