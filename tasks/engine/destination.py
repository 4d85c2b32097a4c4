"""What the plan finds out about the destination: which keys exist, for which rows; kept as hints per chunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import duckdb
import pyarrow as pa

from tasks.engine import existing as listing
from tasks.engine import tables
from tasks.engine.access import Access
from tasks.engine.cut import DONE, HELD_JOINED, load_held
from tasks.engine.errors import Fatal, ObjectError, UserError
from tasks.engine.folder import Folder, Twin
from tasks.engine.job import Job, OnExisting
from tasks.engine.plan import HEAD_AT_MOST, HINTS, ChunkRef, Existing, with_hints
from tasks.engine.seal import sealed
from tasks.engine.state import State
from tasks.engine.store import open_store
from tasks.engine.tries import ATTEMPTS, worth_another_try


def how_to_find(policy: OnExisting, rows: int) -> tuple[Existing, str]:
    """How existing objects are found, and the same in words (SEMANTICS: keys, on_existing).

    | policy | rows to do | how |
    |---|---|---|
    | overwrite | any | not at all |
    | any other | 0 | not at all |
    | any other | up to 500 | HEAD |
    | any other | more | listing |
    """
    if policy is OnExisting.OVERWRITE:
        return "unknown", "not looked for (on_existing: overwrite)"
    if rows == 0:
        return "unknown", "not looked for: nothing is to do"
    if rows <= HEAD_AT_MOST:
        return "head", "found by a HEAD for each row"
    return "listed", "found by one listing of the destination"


def find_existing(
    con: duckdb.DuckDBPyConnection,
    state: State,
    job: Job,
    access: Access,
    chunks: list[ChunkRef],
    pending: int,
    *,
    dry: bool,
) -> tuple[list[ChunkRef], str]:
    """Decides how, lists the destination where that is cheaper, and writes the hints of unfinished chunks.

    ``pending``: rows of earlier chunks that are to do, besides those that were cut. Returns the chunks with what their
    tasks need to know, and the decision in words.
    """
    if dry:
        (rows,) = con.execute("SELECT count(*) FROM cut").fetchall()[0]
        return chunks, how_to_find(job.on_existing, rows + pending)[1]
    unfinished = [chunk for chunk in chunks if chunk.done < chunk.rows]
    load_held(con, state, unfinished)
    columns = f"h.chunk, h.row_id, m.key, m.late_key, {DONE} AS done"
    con.execute(f"CREATE OR REPLACE TABLE open_rows AS SELECT {columns} {HELD_JOINED}")
    (rows,) = con.execute("SELECT count(*) FROM open_rows WHERE NOT done").fetchall()[0]
    con.execute("CREATE TABLE there (key VARCHAR, size BIGINT, etag VARCHAR)")
    how, words = how_to_find(job.on_existing, rows)
    if how == "listed":
        try:
            words += f": {_list(con, state, job, access):,} of the keys to do exist"
        except ObjectError as error:
            if worth_another_try(error):  # a HEAD for each of a million rows would not help a store in trouble
                raise Fatal(
                    f"the destination could not be listed, though asked {ATTEMPTS} times ({error.message}). "
                    "Run the job again later"
                ) from None
            how, words = (
                "head",
                f"found by a HEAD for each row, since the destination cannot be listed ({error.message})",
            )
    hints = _write_hints(con, state)
    to_do = {chunk.digest for chunk in unfinished}
    return [
        with_hints(chunk, chunk.done, how, hints.get(chunk.digest, "")) if chunk.digest in to_do else chunk
        for chunk in chunks
    ], words


def forget_hints(state: State, chunks: Sequence[ChunkRef]) -> None:
    """Deletes what earlier plans found out. ``chunks``: those of the plan in force."""
    state.delete(set(state.list(HINTS)) - {chunk.hints for chunk in chunks})


def twins_in(uri: str) -> frozenset[Twin]:
    """Which names are one in a directory though they differ. Raises UserError where it cannot be tried."""
    folder = Folder(Path(unquote(urlsplit(uri).path)), "plan", create=True)
    try:
        return folder.twins()
    except OSError as exc:
        raise UserError(f"destination: cannot write to {folder.root}: {exc.strerror}") from None
    finally:
        folder.close()


def _list(con: duckdb.DuckDBPyConnection, state: State, job: Job, access: Access) -> int:
    """Fills `there` with what exists of the keys to do; returns how many."""
    store = open_store(job.destination.uri, access, state.spool_dir, create=True)
    con.execute("CREATE TABLE wanted AS SELECT DISTINCT key FROM open_rows WHERE NOT done AND NOT late_key")
    keys = [key for (key,) in con.execute("SELECT key FROM wanted ORDER BY key").fetchall()]
    for page in listing.existing(store, keys):
        columns = {
            "key": pa.array([found.key for found in page], pa.string()),
            "size": pa.array([found.size for found in page], pa.int64()),
            "etag": pa.array([found.etag for found in page], pa.string()),
        }
        con.register("page", pa.table(columns))
        con.execute("INSERT INTO there SELECT page.* FROM page SEMI JOIN wanted USING (key)")
        con.unregister("page")
    (count,) = con.execute("SELECT count(DISTINCT key) FROM there").fetchall()[0]
    return int(count)


def _write_hints(con: duckdb.DuckDBPyConnection, state: State) -> dict[str, str]:
    """One file per chunk that has anything to say: rows that are done, and what exists under a row's key.

    Returns the files' names by chunk.
    """
    reader = con.execute("""
        SELECT o.chunk, o.row_id, o.done, any_value(t.size), any_value(t.etag), w.look, l.key, l.size, l.md5, l.sha256,
               l.content_type, l.source_etag, l.source_last_modified, l.dest_etag,
               coalesce(l.read_at, l.recorded_at),  -- an earlier Ferry wrote no read_at: it read whatever it settled
               l.confirmed
        FROM open_rows o LEFT JOIN there t ON t.key = o.key AND NOT o.late_key
             LEFT JOIN looks w ON w.row_id = o.row_id AND NOT o.done
             LEFT JOIN latest l ON l.row_id = w.row_id
        WHERE o.done OR t.key IS NOT NULL OR w.row_id IS NOT NULL GROUP BY ALL ORDER BY o.chunk
    """)
    lines: list[tuple[Any, ...]] = []
    names: dict[str, str] = {}
    while batch := reader.fetchmany(50_000):
        for line in batch:
            if lines and line[0] != lines[0][0]:
                names[lines[0][0]] = _write(state, lines)
                lines = []
            lines.append(line)
    if lines:
        names[lines[0][0]] = _write(state, lines)
    return names


def _write(state: State, lines: Sequence[tuple[Any, ...]]) -> str:
    columns = list(zip(*lines, strict=True))
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns[1:], tables.HINT, strict=True)]
    data = tables.to_bytes(pa.Table.from_arrays(arrays, schema=tables.HINT))
    name = sealed(f"{HINTS}/{columns[0][0][:32]}", data)
    state.write(name, data)
    return name
