"""The ledger: all outcomes of a job, and their fold to the latest one per row (docs/reference/state.md).

Runs append to `outcomes/`, and :func:`compact_ledger` folds into `ledger/`. A row may be in both, and several times in
each. The latest outcome counts: by run number, then by attempt, then by time, since a clock may step back.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import Damaged, Fatal, Outcome, UserError, disk_error
from ferry.state.checksums import checked_file_name, checked_name, decode_checked_json, is_intact, verified_path
from ferry.state.files import State
from ferry.state.history import create_empty, record_replaced
from ferry.state.id_ranges import EVERY_ROW, RowRange
from ferry.state.old_schemas import RENAMED_IN, copy_renamed
from ferry.state.parquet import OUTCOME_SCHEMA, SCHEMA_VERSION, check_version, encode_outcomes, with_schema
from ferry.state.plan_file import read_plan

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")
MEMORY = "500MB"
# By default DuckDB starts one thread per core. Each has its own buffers: DuckDB's manual (guides/performance,
# environment) recommends 125 MB per thread. With 16 threads a plan of a million rows does not fit into MEMORY.
MAX_THREADS = 4
DAMAGED = "damaged"  # folder to which `--replan` moves damaged files
DAMAGE_ADVICE = (
    "Restore it from a copy of the state, or run `ferry run --replan`: that puts it aside, and rows whose outcomes are "
    "in no other file are rechecked"
)
# The latest outcome of each row is found in two steps. The first reads four columns and finds its file and line;
# sorting whole lines would take several times as long, and more memory than the limit.
_LATEST_POSITIONS = """
    SELECT latest.file, latest.line FROM (
        SELECT arg_max({'file': file_index, 'line': file_row_number}, (run_no, attempt, recorded_at)) AS latest
        FROM read_parquet($paths, union_by_name = true, file_row_number = true) WHERE run_no >= $since GROUP BY row_id
    )
"""
_LATEST = """
    SELECT * FROM no_outcomes UNION ALL BY NAME
    SELECT l.* EXCLUDE (file_row_number) FROM read_parquet($paths, union_by_name = true, file_row_number = true) l
    JOIN latest_positions w ON w.file = l.file_index AND w.line = l.file_row_number
"""


def connect(spool_dir: Path) -> duckdb.DuckDBPyConnection:
    """Returns a DuckDB connection that is limited to MEMORY, spills to ``spool_dir`` and downloads no extension."""
    import duckdb  # imported here, since processes that transfer do not need it

    spool_dir.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect()
    con.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    con.execute(f"SET memory_limit = '{MEMORY}'; SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
    (threads,) = con.execute("SELECT current_setting('threads')").fetchall()[0]
    con.execute(f"SET threads = {min(threads, MAX_THREADS)}")
    con.execute("SET temp_directory = ?", [str(spool_dir / f"duckdb-{secrets.token_hex(4)}")])
    con.execute("SET enable_progress_bar = false")
    return con


def write_outcomes(state: State, data: bytes, run_no: int, chunk: str, part: int) -> str:
    """Writes `outcomes/<run>-<chunk>-<part>-<digest>.parquet` atomically, and returns its name.

    ``chunk`` is a chunk's digest, or a word such as `plan` or `verify` for outcomes of another step.
    """
    name = checked_name(f"outcomes/{run_no:06d}-{chunk[:32]}-{part:05d}", data)
    state.write(name, data)
    return name


def append_outcomes(state: State, outcomes: Sequence[Outcome], run_no: int, chunk: str, part: int) -> str:
    """Writes outcomes as :func:`write_outcomes` writes their bytes."""
    return write_outcomes(state, encode_outcomes(outcomes), run_no, chunk, part)


def run_of(name: str) -> int:
    """Returns the run number in a state file's name, or 0 for a name without one."""
    match = re.match(r"[^/]+/(?:run-)?(\d{6})", name)
    return int(match.group(1)) if match else 0


def last_run_no(state: State) -> int:
    """Returns the highest run number of the plan and of the state's files; 0 before the first run."""
    try:
        plan = read_plan(state)
    except Damaged:  # the next plan reports it
        plan = None
    names = (name for folder in ("outcomes", "ledger", "reports", DAMAGED) for name in state.list(folder))
    return max((plan.last_run if plan else 0, *map(run_of, names)))


def ledger_files(state: State) -> list[str]:
    """Returns the names of the ledger's files, which contain every outcome at any time.

    A fold writes its file before it deletes those that it replaces. `outcomes/` is listed first: what a concurrent fold
    removes from there is in `ledger/` when that is listed.
    """
    outcomes, folds = state.list("outcomes"), state.list("ledger")
    return [name for name in (*folds, *outcomes) if name.endswith(".parquet")]


def is_folded(names: Sequence[str]) -> bool:
    """Returns whether the ledger is one file of :func:`compact_ledger`, with one line per row."""
    return len(names) == 1 and names[0].startswith("ledger/")


def keep_readable(path: Path, open_files: contextlib.ExitStack) -> str:
    """Returns a path under which the file can be read until ``open_files`` closes, even if its name is deleted.

    The path is that of an open descriptor (proc(5), `fd`): the kernel frees the bytes of an unlinked file only when
    the last descriptor is closed (unlink(2)).
    """
    return f"/dev/fd/{open_files.enter_context(path.open('rb')).fileno()}"


def create_latest(
    con: duckdb.DuckDBPyConnection,
    state: State,
    since_run: int = 0,
    *,
    open_files: contextlib.ExitStack | None = None,
) -> None:
    """Creates `latest`: the latest outcome of each row, from the runs since ``since_run``.

    A folded ledger becomes a view that reads the file with each query. A compaction by another run deletes that file;
    with ``open_files`` the view reads a descriptor, which stays valid until they are closed. Any other ledger is
    copied into a table.

    Raises NewerVersion for a file that a newer Ferry wrote, and Damaged for one whose digest is wrong: DuckDB and Arrow
    do not notice most flipped bits.
    """
    with _local_paths(con, state, ledger_files(state)) as local:
        current = is_folded(list(local)) and set(_schemas(con, list(local.values())).values()) == {SCHEMA_VERSION}
        if current:
            (path,) = local.values()
            if open_files is not None:
                path = keep_readable(Path(path), open_files)
            con.from_parquet(path).filter(f"run_no >= {since_run}").create_view("latest", replace=True)
            return
        sql, given = _latest(con, list(local.values()), since_run)
        con.execute(f"CREATE OR REPLACE TABLE latest AS {sql}", given)


class OpenLedger:
    """A ledger's latest outcomes, one range of row IDs after the other (:func:`open_ledger`)."""

    def __init__(self, con: duckdb.DuckDBPyConnection, rows: int) -> None:
        self._con = con
        self.rows = rows  # at most this many rows have an outcome

    def create_latest(self, rows: RowRange = EVERY_ROW) -> None:
        """Creates `latest`: the latest outcome of each row of the range. It replaces the view of another range."""
        self._con.execute(f"CREATE OR REPLACE TEMP VIEW latest AS SELECT * FROM every_latest WHERE {rows.condition()}")


@contextlib.contextmanager
def open_ledger(con: duckdb.DuckDBPyConnection, state: State, since_run: int = 0) -> Iterator[OpenLedger]:
    """Opens the ledger for the block, with the outcomes of the runs since ``since_run``.

    What was listed stays readable until the block ends, even if another run compacts the ledger meanwhile. Raises
    NewerVersion and Damaged as :func:`create_latest` does.
    """
    with contextlib.ExitStack() as open_files:
        create_latest(con, state, since_run, open_files=open_files)
        con.execute(f"ALTER {'VIEW' if _is_view(con) else 'TABLE'} latest RENAME TO every_latest")
        (rows,) = con.execute("SELECT count(*) FROM every_latest").fetchall()[0]
        yield OpenLedger(con, rows)


def _is_view(con: duckdb.DuckDBPyConnection) -> bool:
    return bool(con.execute("SELECT 1 FROM duckdb_views() WHERE view_name = 'latest'").fetchall())


@contextlib.contextmanager
def _local_paths(con: duckdb.DuckDBPyConnection, state: State, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the local path of each file; files before schema 4 are copied with today's names for the block.

    Raises NewerVersion for a file that a newer Ferry wrote, and Damaged for one whose digest is wrong.
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
    """Returns the schema version of each file. Raises NewerVersion for a file that a newer Ferry wrote."""
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
    """Returns a query for the latest outcome of each row in these files, and its parameters.

    The result has all of today's columns, empty where an earlier version did not write them.
    """
    create_empty(con)
    if not paths:
        return "SELECT * FROM no_outcomes", {}
    given: dict[str, Any] = {"paths": list(paths)}
    con.execute(f"CREATE OR REPLACE TEMP TABLE latest_positions AS {_LATEST_POSITIONS}", {**given, "since": since_run})
    return _LATEST, given


def with_retries(read: Callable[[], T], tries: int = 8) -> T:
    """Returns what ``read`` returns; calls it again when a file that it had listed is deleted by a compaction.

    Raises the error of the last try, and UserError at once for a file that is not Parquet.
    """
    import duckdb

    for left in reversed(range(tries)):
        try:
            with refuse_damage():
                return read()
        except (duckdb.IOException, FileNotFoundError):
            if not left:
                raise
            time.sleep(0.1)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def refuse_damage() -> Iterator[None]:
    """Raises UserError when DuckDB cannot read a file as Parquet in the block, and Fatal when its memory or the disk on
    which it spills is full."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as exc:
        raise Fatal(
            f"a query of the ledger needs more than the {MEMORY} of memory that DuckDB may use, or more than the free "
            f"disk space below TMPDIR and the state, where it spills ({str(exc).partition(chr(10))[0]}). Free some "
            "space and run the command again; nothing is lost. If there is enough space, please report it with the "
            "number of rows"
        ) from None
    except duckdb.IOException as exc:
        if "No space left" not in str(exc):
            raise
        raise disk_error(OSError(errno.ENOSPC, str(exc)), "a temporary file of DuckDB") from None
    except duckdb.InvalidInputException as exc:
        raise UserError(f"a ledger file is damaged: {exc}. {DAMAGE_ADVICE}") from None


def compact_ledger(state: State, run_no: int) -> str:
    """Folds all outcomes into one file of `ledger/`, deletes the files that it replaces, and returns its name.

    The copies that this run replaced are written to `history/` first. A crash before the deletion leaves old and new
    files, which readers fold to the same rows. A ledger that is folded already stays as it is.
    """
    old = ledger_files(state)
    if is_folded(old):
        return old[0]
    con = connect(state.spool_dir)
    try:
        with _local_paths(con, state, old) as local:
            unfolded = [path for name, path in local.items() if name.startswith("outcomes/")]
            orphans = record_replaced(con, state, run_no, list(local.values()), unfolded)
        if orphans:
            old.append(append_outcomes(state, orphans, run_no, "left", 0))
        target = state.spool_dir / "ledger.parquet"
        columns = ", ".join(f'"{column}"' for column in OUTCOME_SCHEMA.names)
        with _local_paths(con, state, old) as local:
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
    """Raises Damaged when the folded ledger that the last finished run wrote is missing, and there is no later one.

    `--replan` records it as lost, and then it is not missing any more.
    """
    summaries = [name for name in state.list("reports") if name.endswith("/summary.json")]
    if not summaries:
        return
    try:
        name = str(decode_checked_json(state.read(max(summaries, key=run_of)))["ledger"])
    except (ValueError, KeyError, TypeError):  # a damaged summary, or one of an earlier Ferry, names no file
        return
    present = state.list("ledger")
    recorded = {Path(lost).name for lost in state.list(DAMAGED)}
    newer = any(other > name for other in present)  # names sort by run, then by time
    if name in present or newer or Path(name).name in recorded:
        return
    raise Damaged(f"state file {name} is missing, with the outcomes of all runs up to {run_of(name)}. {DAMAGE_ADVICE}")


def put_ledger_aside(state: State) -> list[str]:
    """Moves the ledger's damaged files to `damaged/` for `--replan`, and returns their names.

    A missing ledger file is recorded there as an empty file.
    """
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
