"""The ledger: every outcome, folded to the latest per row. The truth about a job (docs/reference/state.md).

`outcomes/` holds what runs append, `ledger/` what :func:`compact` folded. A row may stand in both, and
more than once in each: readers take the latest by run number, then by attempt, then by time (a clock may step back).
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import Damaged, Outcome, UserError
from ferry.state.checksums import checked_file_name, checked_name, decode_checked_json, is_intact, verified_path
from ferry.state.files import State
from ferry.state.history import create_empty, note_replaced
from ferry.state.old_schemas import RENAMED_IN, copy_renamed
from ferry.state.parquet import OUTCOME_SCHEMA, SCHEMA_VERSION, check_version, encode_outcomes, with_schema
from ferry.state.plan_file import read_plan

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")
MEMORY = "500MB"
# DuckDB takes a thread for each core, and each thread holds buffers of its own: its manual (guides/performance,
# environment) asks for 125 MB a thread. With 16 threads a plan of a million rows does not fit into MEMORY.
THREADS_AT_MOST = 4
DAMAGED = "damaged"  # where `--replan` puts files that are not as they were written
DAMAGE_ADVICE = (
    "Restore it from a copy of the state, or plan anew with `ferry run --replan`: it is put aside, and rows whose "
    "outcomes it alone had are looked at again"
)
# The latest outcome of each row of some files. Where it stands is found first, from four columns: to sort whole lines
# takes several times the time, and more memory than there may be.
_WHERE_LATEST = """
    SELECT latest.file, latest.line FROM (
        SELECT arg_max({'file': file_index, 'line': file_row_number}, (run_no, attempt, recorded_at)) AS latest
        FROM read_parquet($paths, union_by_name = true, file_row_number = true) WHERE run_no >= $since GROUP BY row_id
    )
"""
_LATEST = """
    SELECT * FROM no_outcomes UNION ALL BY NAME
    SELECT l.* EXCLUDE (file_row_number) FROM read_parquet($paths, union_by_name = true, file_row_number = true) l
    JOIN where_latest w ON w.file = l.file_index AND w.line = l.file_row_number
"""


def connect(spool_dir: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB that stays within MEMORY, spills to ``spool_dir`` and downloads nothing."""
    import duckdb  # which the transferring process does without

    spool_dir.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect()
    con.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    con.execute(f"SET memory_limit = '{MEMORY}'; SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
    (threads,) = con.execute("SELECT current_setting('threads')").fetchall()[0]
    con.execute(f"SET threads = {min(threads, THREADS_AT_MOST)}")
    con.execute("SET temp_directory = ?", [str(spool_dir / f"duckdb-{secrets.token_hex(4)}")])
    con.execute("SET enable_progress_bar = false")
    return con


def write_outcomes(state: State, data: bytes, run_no: int, chunk: str, part: int) -> str:
    """Writes `outcomes/<run>-<chunk>-<part>-<digest>.parquet`, whole or not at all, and returns its name.

    Outcomes of planning and of verifying say so for a chunk.
    """
    name = checked_name(f"outcomes/{run_no:06d}-{chunk[:32]}-{part:05d}", data)
    state.write(name, data)
    return name


def append_outcomes(state: State, outcomes: Sequence[Outcome], run_no: int, chunk: str, part: int) -> str:
    """As :func:`write_outcomes`."""
    return write_outcomes(state, encode_outcomes(outcomes), run_no, chunk, part)


def run_of(name: str) -> int:
    match = re.match(r"[^/]+/(?:run-)?(\d{6})", name)
    return int(match.group(1)) if match else 0


def last_run_no(state: State) -> int:
    """The highest run number that left anything behind; 0 before the first run."""
    try:
        plan = read_plan(state)
    except Damaged:  # planning will say so
        plan = None
    names = (name for folder in ("outcomes", "ledger", "reports", DAMAGED) for name in state.list(folder))
    return max((plan.last_run if plan else 0, *map(run_of, names)))


def ledger_files(state: State) -> list[str]:
    """The ledger's files. Each outcome is in one of them at any time: what replaces a file is there before it goes.

    `outcomes/` is listed first: what a fold takes from there meanwhile is in `ledger/` by then.
    """
    outcomes, folds = state.list("outcomes"), state.list("ledger")
    return [name for name in (*folds, *outcomes) if name.endswith(".parquet")]


def folded(names: Sequence[str]) -> bool:
    """Is all in one file that :func:`compact` wrote: each row once?"""
    return len(names) == 1 and names[0].startswith("ledger/")


def create_latest(con: duckdb.DuckDBPyConnection, state: State, since_run: int = 0, *, at_once: bool = False) -> None:
    """Makes `latest`, the latest outcome of each row, of runs from ``since_run`` on.

    A folded ledger is a view, read when it is asked; ``at_once`` where a run may fold it anew meanwhile.
    Raises UserError for a file that a newer Ferry wrote, Damaged for one that is not as it was written: DuckDB and
    Arrow read most flipped bits without a word.
    """
    with _local(con, state, ledger_files(state)) as local:
        current = folded(list(local)) and set(_schemas(con, list(local.values())).values()) == {SCHEMA_VERSION}
        if current and not at_once:
            (path,) = local.values()
            con.from_parquet(path).filter(f"run_no >= {since_run}").create_view("latest", replace=True)
            return
        sql, given = _latest(con, list(local.values()), since_run)
        con.execute(f"CREATE OR REPLACE TABLE latest AS {sql}", given)


@contextlib.contextmanager
def _local(con: duckdb.DuckDBPyConnection, state: State, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """The files' local paths; of those with the names of an earlier schema, of copies that end with the block.

    Raises Damaged, and NewerVersion for a file that a newer Ferry wrote.
    """
    local = {name: str(verified_path(state, name, DAMAGE_ADVICE)) for name in names}
    (scratch,) = con.execute("SELECT current_setting('temp_directory')").fetchall()[0]
    copies = Path(f"{scratch}-renamed")
    try:
        schemas = _schemas(con, list(local.values()))
        for number, (name, path) in enumerate(list(local.items())):
            if schemas[path] < RENAMED_IN:
                local[name] = str(copies / f"{number}.parquet")
                copy_renamed(con, path, Path(local[name]))
        yield local
    finally:
        shutil.rmtree(copies, ignore_errors=True)


def _schemas(con: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, int]:
    """The schema of each file. Raises NewerVersion for a file that a newer Ferry wrote."""
    if not paths:
        return {}
    found: dict[str, int] = dict(
        con.execute(
            "SELECT file_name, CAST(decode(value) AS INTEGER) FROM parquet_kv_metadata(?) "
            "WHERE decode(key) = 'ferry_schema'",
            [list(paths)],
        ).fetchall()
    )
    check_version(max(found.values()), "the ledger")
    return found


def _latest(con: duckdb.DuckDBPyConnection, paths: Sequence[str], since_run: int = 0) -> tuple[str, dict[str, Any]]:
    """A query for the latest outcome of each row of these files, with the columns that earlier versions did not write;
    and its parameters."""
    create_empty(con)
    if not paths:
        return "SELECT * FROM no_outcomes", {}
    given: dict[str, Any] = {"paths": list(paths)}
    con.execute(f"CREATE OR REPLACE TEMP TABLE where_latest AS {_WHERE_LATEST}", {**given, "since": since_run})
    return _LATEST, given


def reading(read: Callable[[], T], tries: int = 8) -> T:
    """Runs a reader that may meet a compaction: a file that went away means: list again."""
    import duckdb

    for left in reversed(range(tries)):
        try:
            return read()
        except (duckdb.IOException, FileNotFoundError):
            if not left:
                raise
            time.sleep(0.1)
        except duckdb.InvalidInputException as exc:
            raise UserError(f"a ledger file is damaged: {exc}") from None
    raise AssertionError("unreachable")


def compact_ledger(state: State, run_no: int) -> str:
    """Folds all outcomes into one file of `ledger/`, then deletes what it replaces; returns the file's name.

    What copies were before this run replaced them goes to `history/` first.

    A crash between the two leaves both: harmless, since readers fold. Where a run left nothing, all is folded already.
    """
    old = ledger_files(state)
    if folded(old):
        return old[0]
    con = connect(state.spool_dir)
    try:
        with _local(con, state, old) as local:
            unfolded = [path for name, path in local.items() if name.startswith("outcomes/")]
            left_behind = note_replaced(con, state, run_no, list(local.values()), unfolded)
        if left_behind:
            old.append(append_outcomes(state, left_behind, run_no, "left", 0))
        target = state.spool_dir / "ledger.parquet"
        columns = ", ".join(f'"{column}"' for column in OUTCOME_SCHEMA.names)
        with _local(con, state, old) as local:
            sql, given = _latest(con, list(local.values()))
            reader: Any = con.sql(f"SELECT {columns} FROM ({sql})", params=given).to_arrow_reader(50_000)
            with pq.ParquetWriter(target, OUTCOME_SCHEMA, compression="zstd") as writer:
                for batch in reader:
                    writer.write_table(with_schema(pa.Table.from_batches([batch]), OUTCOME_SCHEMA))
    finally:
        con.close()
    name = checked_file_name(f"ledger/{run_no:06d}-{time.time_ns():019d}", target)
    state.write_file(name, target)
    state.delete(old)
    return name


def refuse_lost_ledger(state: State) -> None:
    """Raises Damaged when the folded ledger that the last finished run named is gone, and no later one is there.

    A later fold replaces it; `--replan` books it as lost.
    """
    summaries = [name for name in state.list("reports") if name.endswith("/summary.json")]
    if not summaries:
        return
    try:
        name = str(decode_checked_json(state.read(max(summaries, key=run_of)))["ledger"])
    except (ValueError, KeyError, TypeError):  # of an earlier Ferry, or damaged: it proves nothing
        return
    there = state.list("ledger")
    booked = {Path(known).name for known in state.list(DAMAGED)}
    if name in there or any(other > name for other in there) or Path(name).name in booked:  # by run, then by time
        return
    raise Damaged(f"state file {name} is gone, with the outcomes of all runs up to {run_of(name)}. {DAMAGE_ADVICE}")


def put_ledger_aside(state: State) -> list[str]:
    """`--replan`: moves damaged files of the ledger to `damaged/`, and books a lost one there. Returns their names."""
    damaged = [name for name in ledger_files(state) if not is_intact(state, name)]
    for name in damaged:
        state.write(f"{DAMAGED}/{Path(name).name}", state.read(name))
    state.delete(damaged)
    try:
        refuse_lost_ledger(state)
    except Damaged:
        summary = max((name for name in state.list("reports") if name.endswith("/summary.json")), key=run_of)
        lost = str(decode_checked_json(state.read(summary))["ledger"])
        state.write(f"{DAMAGED}/{Path(lost).name}", b"")
        damaged.append(lost)
    return damaged
