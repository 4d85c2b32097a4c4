"""The ledger: every outcome, folded to the latest per row. The truth about a job (docs/state.md).

`outcomes/` holds what runs append, `ledger/` what :func:`compact` folded. A row may stand in both, and
more than once in each: readers take the latest by run number, then by attempt, then by time (a clock may step back).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.engine.errors import UserError
from tasks.engine.objects import Outcome
from tasks.engine.plan import read_plan
from tasks.engine.state import State
from tasks.engine.tables import OUTCOME, check_version, encode_outcomes, with_schema

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")
LATEST = "QUALIFY row_number() OVER (PARTITION BY row_id ORDER BY run_no DESC, attempt DESC, recorded_at DESC) = 1"


def connect(spool_dir: Path, memory: str = "1GB") -> duckdb.DuckDBPyConnection:
    """A DuckDB that stays within ``memory``, spills to ``spool_dir`` and downloads nothing."""
    import duckdb  # which the transferring process does without

    spool_dir.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect()
    con.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    con.execute(f"SET memory_limit = '{memory}'; SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
    con.execute("SET temp_directory = ?", [str(spool_dir / "duckdb")])
    con.execute("SET enable_progress_bar = false")
    return con


def outcome_name(run_no: int, chunk: str, part: int) -> str:
    """`outcomes/<run>-<chunk>-<part>.parquet`; outcomes of planning and verifying say so for a chunk."""
    return f"outcomes/{run_no:06d}-{chunk[:32]}-{part:05d}.parquet"


def append(state: State, outcomes: Sequence[Outcome], run_no: int, chunk: str, part: int) -> str:
    """Writes outcomes, whole or not at all, and returns the file's name."""
    name = outcome_name(run_no, chunk, part)
    state.write(name, encode_outcomes(outcomes))
    return name


def run_of(name: str) -> int:
    match = re.match(r"[^/]+/(?:run-)?(\d{6})", name)
    return int(match.group(1)) if match else 0


def last_run_no(state: State) -> int:
    """The highest run number that left anything behind; 0 before the first run."""
    plan = read_plan(state)
    names = (name for folder in ("outcomes", "ledger", "reports") for name in state.list(folder))
    return max((plan.last_run if plan else 0, *map(run_of, names)))


def files(state: State) -> list[str]:
    return [name for folder in ("ledger", "outcomes") for name in state.list(folder) if name.endswith(".parquet")]


def folded(names: Sequence[str]) -> bool:
    """Is all in one file that :func:`compact` wrote: each row once?"""
    return len(names) == 1 and names[0].startswith("ledger/")


def create_latest(con: duckdb.DuckDBPyConnection, state: State, since_run: int = 0, *, at_once: bool = False) -> None:
    """Makes `latest`, the latest outcome of each row, of runs from ``since_run`` on.

    A folded ledger is a view, read when it is asked; ``at_once`` where a run may fold it anew meanwhile.
    Raises UserError for a file that a newer Ferry wrote.
    """
    names = files(state)
    paths = [str(state.local(name)) for name in names]
    if not paths:
        con.register("no_outcomes", OUTCOME.empty_table())
        con.execute("CREATE OR REPLACE TABLE latest AS SELECT * FROM no_outcomes")
        return
    versions = con.execute(
        "SELECT max(CAST(decode(value) AS INTEGER)) FROM parquet_kv_metadata(?) WHERE decode(key) = 'ferry_schema'",
        [paths],
    ).fetchall()
    check_version(versions[0][0], "the ledger")
    if folded(names) and not at_once:
        con.from_parquet(paths[0]).filter(f"run_no >= {since_run}").create_view("latest", replace=True)
        return
    con.execute(
        f"CREATE OR REPLACE TABLE latest AS SELECT * FROM read_parquet(?) WHERE run_no >= ? {LATEST}",
        [paths, since_run],
    )


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


def compact(state: State, run_no: int) -> None:
    """Folds all outcomes into one file of `ledger/`, then deletes what it replaces.

    A crash between the two leaves both: harmless, since readers fold. Where a run left nothing, all is folded already.
    """
    old = files(state)
    if folded(old):
        return
    name = f"ledger/{run_no:06d}-{time.time_ns():019d}.parquet"
    con = connect(state.spool_dir)
    try:
        create_latest(con, state)
        target = state.spool_dir / "ledger.parquet"
        columns = ", ".join(f'"{column}"' for column in OUTCOME.names)
        reader: Any = con.sql(f"SELECT {columns} FROM latest ORDER BY row_id").to_arrow_reader(50_000)
        with pq.ParquetWriter(target, OUTCOME, compression="zstd") as writer:
            for batch in reader:
                writer.write_table(with_schema(pa.Table.from_batches([batch]), OUTCOME))
    finally:
        con.close()
    state.write_file(name, target)
    state.delete(old)
