"""DuckDB for the ledger: bounded memory, and errors in the words of a user."""

from __future__ import annotations

import contextlib
import errno
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from ferry.core import Fatal, UserError, disk_error

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")
MEMORY = "400MB"
# By default DuckDB starts one thread per core. Each has its own buffers: DuckDB's manual (guides/performance,
# environment) recommends 125 MB per thread. With 16 threads a plan of a million rows does not fit into MEMORY.
MAX_THREADS = 4
DAMAGE_ADVICE = (
    "Restore it from a copy of the state, or run `ferry run --replan`: that puts it aside, and rows whose outcomes are "
    "in no other file are rechecked"
)


def connect(spool_dir: Path) -> duckdb.DuckDBPyConnection:
    """Returns a DuckDB connection that is limited to MEMORY, spills to ``spool_dir`` and downloads no extension."""
    import duckdb  # imported here, since processes that transfer do not need it

    spool_dir.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect()
    con.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    con.execute("SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
    release_freed(con)  # by the step before: up to 230 MB after a fold
    (threads,) = con.execute("SELECT current_setting('threads')").fetchall()[0]
    con.execute(f"SET threads = {min(threads, MAX_THREADS)}")
    con.execute("SET temp_directory = ?", [str(spool_dir / f"duckdb-{secrets.token_hex(4)}")])
    con.execute("SET enable_progress_bar = false")
    return con


def release_freed(con: duckdb.DuckDBPyConnection) -> None:
    """Limit DuckDB to MEMORY, and give the system back what it and Arrow have freed: up to 400 MB beside MEMORY.

    DuckDB empties its allocator whenever the limit is set, to whatever value.
    """
    pa.default_memory_pool().release_unused()
    con.execute(f"SET memory_limit = '{MEMORY}'")


def scratch_path(con: duckdb.DuckDBPyConnection, name: str) -> Path:
    """Returns a path beside the directory to which the connection spills. It is new for each call."""
    (spills_to,) = con.execute("SELECT current_setting('temp_directory')").fetchall()[0]
    return Path(f"{spills_to}-{secrets.token_hex(4)}-{name}")


def scan(paths: Sequence[str]) -> str:
    """Returns SQL for the lines of Parquet files, for views, which take no parameters."""
    quoted = (path.replace("'", "''") for path in paths)
    names = ", ".join(f"'{path}'" for path in quoted)
    return f"read_parquet([{names}], union_by_name = true)"


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
