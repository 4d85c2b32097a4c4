"""Queries of a job's state. They are safe during a run."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferry.core import Damaged, UserError
from ferry.state import ledger
from ferry.state.checksums import verified_path
from ferry.state.files import State
from ferry.state.plan_file import Plan, read_plan

if TYPE_CHECKING:
    import duckdb

# Characters that control a terminal or are invisible; XML 1.0 (section 2.2) does not allow half of them.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ufffe\uffff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: full width
# With `;` as the list separator of Windows, Excel splits a .csv there, even inside a quoted cell.
_FORMULA_INSIDE = re.compile(r"([;|])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")


@contextlib.contextmanager
def folded_ledger(state: State, spool_dir: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yields a DuckDB connection to the folded ledger and the manifest, for queries in the block.

    | relation | content |
    |---|---|
    | `latest` | the latest outcome of each row |
    | `manifest` | the rows of the normalised manifest |
    | `waiting` | IDs of rows that are done by the ledger, and that the plan wants to transfer or recheck again |

    Another run may plan or compact during the block, and delete the files that were listed here. Before the block,
    such a deletion makes this list the files again. In the block no name is read: `latest` and `manifest` are tables,
    or views of open descriptors, whose bytes outlive their names, and `waiting` is a table.

    DuckDB spills to ``spool_dir``, or to a temporary directory: a reader may not have the right to write to the state.
    Raises UserError when nothing is planned yet, and Damaged for a file of the ledger.
    """
    con, resources = ledger.with_retries(partial(_open_ledger, state, spool_dir))
    with resources, ledger.refuse_damage():
        yield con


def _open_ledger(state: State, spool_dir: Path | None) -> tuple[duckdb.DuckDBPyConnection, contextlib.ExitStack]:
    """Returns the connection of :func:`folded_ledger`, and what to close after it."""
    plan = read_plan(state)
    if plan is None:
        raise UserError("nothing is planned yet; start with `ferry run`")
    manifest = verified_path(state, plan.manifest["file"], "The next `ferry run` makes it again from the manifest")
    ledger.refuse_lost_ledger(state)
    with contextlib.ExitStack() as resources:
        scratch = spool_dir or Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="ferry-read-")))
        open_files = resources.enter_context(contextlib.ExitStack())
        con = resources.enter_context(ledger.connect(scratch))
        rows = con.from_parquet(ledger.keep_readable(manifest, open_files))
        for name, kind in (("line_no", "BIGINT"), ("alternatives", "VARCHAR[]")):
            if name not in rows.columns:  # of a version that did not keep it
                rows = rows.project(f"*, NULL::{kind} AS {name}")
        rows.create_view("manifest")
        ledger.create_latest(con, state, plan.since_run, open_files=open_files)
        _load_waiting(con, state, plan)
        return con, resources.pop_all()


def _load_waiting(con: duckdb.DuckDBPyConnection, state: State, plan: Plan) -> None:
    """Fills `waiting`: rows that are done by the ledger, and that a retry chunk has for an attempt without an outcome.

    Another row may have written their key, or other settings no longer skip them. The row that they repeated may have
    been removed from the manifest, or a delta run is to recheck them. Failed rows of such chunks are not included: they
    stay failed until the attempt has an outcome.
    """
    paths = []
    for chunk in plan.chunks:
        if chunk.kind == "retry":
            with contextlib.suppress(FileNotFoundError, Damaged):  # the next plan puts its rows into new chunks
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


def select_wrong(con: duckdb.DuckDBPyConnection, limit: int) -> list[dict[str, str]]:
    """Returns the first ``limit`` rows that `ferry verify` found missing or altered and that no run has repaired.

    ``con`` is that of :func:`folded_ledger`.
    """
    found = con.execute(
        """
        SELECT l.key, l.error_class, l.message FROM latest l SEMI JOIN manifest USING (row_id)
        WHERE l.status = 'pending' AND l.error_class IN ('missing', 'altered') ORDER BY l.key LIMIT ?
        """,
        [limit],
    ).fetchall()
    return [dict(zip(("key", "error_class", "message"), line, strict=True)) for line in found]


def spreadsheet_safe(value: Any) -> Any:
    """Returns a cell's value with a `'` in front of text that a spreadsheet would take for a formula.

    Control characters are escaped: users also view a .csv in a terminal, and a sheet cannot contain them.
    """
    if not isinstance(value, str):
        return value
    text = _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), value)
    return f"'{text}" if value.startswith(_FORMULA) else text


def failure_cell(value: Any) -> Any:
    """Returns the value as :func:`spreadsheet_safe` does, but also quotes formulas inside the cell.

    It is for cells whose text comes from outside and that no user joins on, since it changes them.
    """
    safe = spreadsheet_safe(value)
    return _FORMULA_INSIDE.sub(r"\1'", safe) if isinstance(safe, str) else safe
