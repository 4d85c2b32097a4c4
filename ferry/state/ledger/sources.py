"""The ledger's files as local files, with what a merge needs to know of each."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ferry.state.checksums import digest_in, verified_path
from ferry.state.files import State
from ferry.state.ledger.connection import DAMAGE_ADVICE, scratch_path
from ferry.state.ledger.files import is_over
from ferry.state.old_schemas import RENAMED_IN, copy_renamed
from ferry.state.parquet import SCHEMA_VERSION, SORTED_BY, check_version

if TYPE_CHECKING:
    import duckdb

# A whole fold of more rows is not written again for few changes. Up to so many, all rows fit into one range, and a fold
# takes seconds: the ledger stays one file.
SMALL_LEDGER = 1_000_000
CHANGES_PER_ROW = 1 / 8  # with more changes than that, everything is folded into one file


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the ledger, as :func:`local_sources` yields it."""

    name: str
    path: Path  # for a file before schema 4, of a copy with today's column names
    rows: int
    schema: int
    is_sorted: bool  # by row ID

    @property
    def readable_in_place(self) -> bool:
        """Whether a range of row IDs can be read from the file by itself, with today's columns."""
        return self.is_sorted and self.schema == SCHEMA_VERSION


@contextlib.contextmanager
def local_sources(con: duckdb.DuckDBPyConnection, state: State, names: Sequence[str]) -> Iterator[list[Source]]:
    """Yields the local file of each name; files before schema 4 are copied with today's names for the block.

    Raises NewerVersion for a file that a newer Ferry wrote, and Damaged for one whose digest is wrong: DuckDB and Arrow
    do not notice most flipped bits.
    """
    paths = {name: verified_path(state, name, DAMAGE_ADVICE) for name in names}
    copies = scratch_path(con, "renamed")
    try:
        about = _about(con, list(paths.values()))
        sources = []
        for number, (name, path) in enumerate(paths.items()):
            rows, schema, is_sorted = about[str(path)]
            if schema < RENAMED_IN:
                copy_renamed(con, str(path), path := copies / f"{number}.parquet")
            sources.append(Source(name, path, rows, schema, is_sorted))
        yield sources
    finally:
        shutil.rmtree(copies, ignore_errors=True)


def _about(con: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> dict[str, tuple[int, int, bool]]:
    """Returns the rows of each file, its schema version, and whether it is sorted. Raises NewerVersion."""
    if not paths:
        return {}
    found = con.execute(
        """
        SELECT file_name, num_rows, coalesce(schema, 0), coalesce(sorted, false)
        FROM parquet_file_metadata($paths) LEFT JOIN (
            SELECT file_name, max(TRY_CAST(decode(value) AS INTEGER)) FILTER (decode(key) = 'ferry_schema') AS schema,
                   bool_or(decode(key) = $sorted) AS sorted
            FROM parquet_kv_metadata($paths) GROUP BY 1
        ) USING (file_name)
        """,
        {"paths": [str(path) for path in paths], "sorted": SORTED_BY.decode()},
    ).fetchall()
    check_version(max(schema for _, _, schema, _ in found), "the ledger")
    return {name: (rows, schema, is_sorted) for name, rows, schema, is_sorted in found}


def choose_base(sources: Sequence[Source]) -> Source | None:
    """Returns the whole fold that stays as it is, so that only the changed rows are written, or None.

    | rows of the largest whole fold | it is sorted | rows of all other files | result |
    |---|---|---|---|
    | up to SMALL_LEDGER | any | any | None |
    | more | no | any | None |
    | more | yes | over CHANGES_PER_ROW of it | None |
    | more | yes | fewer | the whole fold |
    """
    whole = [source for source in sources if source.name.startswith("ledger/") and not is_over(source.name)]
    base = max(whole, key=lambda source: source.rows, default=None)
    if base is None or base.rows <= SMALL_LEDGER or not (base.readable_in_place and digest_in(base.name)):
        return None
    changed = sum(source.rows for source in sources) - base.rows
    return base if changed <= base.rows * CHANGES_PER_ROW else None


def is_small(lines: int) -> bool:
    """Returns whether so many outcomes are merged at once: they fit into DuckDB's memory."""
    return lines <= SMALL_LEDGER
