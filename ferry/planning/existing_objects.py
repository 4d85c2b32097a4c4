"""What the plan finds out about the destination: which keys exist, for which rows; kept as hints per chunk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from queue import Full, Queue
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from ferry.core import ATTEMPTS, Fatal, ObjectError, UserError, worth_another_try
from ferry.job import Job, OnExisting
from ferry.planning.chunk_files import DONE, HELD_JOINED, load_held
from ferry.state import HINT_SCHEMA, HINTS, ChunkRef, Existing, State, checked_name, to_bytes, with_hints
from ferry.storage import Access, FoldedName, Folder, ObjectInfo, Store, open_store

if TYPE_CHECKING:
    import duckdb


HEAD_AT_MOST = 500  # rows to do for which HEADs are asked; for more the destination is listed


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
    columns = f"h.chunk, h.row_id, m.key, m.deferred_key, {DONE} AS done"
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


def name_folding_of(uri: str) -> frozenset[FoldedName]:
    """Which names are one in a directory though they differ. Raises UserError where it cannot be tried."""
    folder = Folder(Path(unquote(urlsplit(uri).path)), "plan", create=True)
    try:
        return folder.folded_names()
    except OSError as exc:
        raise UserError(f"destination: cannot write to {folder.root}: {exc.strerror}") from None
    finally:
        folder.close()


def _list(con: duckdb.DuckDBPyConnection, state: State, job: Job, access: Access) -> int:
    """Fills `there` with what exists of the keys to do; returns how many."""
    store = open_store(job.destination.uri, access, state.spool_dir, create=True)
    con.execute("CREATE TABLE wanted AS SELECT DISTINCT key FROM open_rows WHERE NOT done AND NOT deferred_key")
    keys = [key for (key,) in con.execute("SELECT key FROM wanted ORDER BY key").fetchall()]
    for page in existing(store, keys):
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
        SELECT o.chunk, o.row_id, o.done, any_value(t.size), any_value(t.etag), w.revalidate, l.key, l.size, l.md5,
               l.sha256, l.content_type, l.source_etag, l.source_last_modified, l.dest_etag,
               -- an earlier Ferry wrote no bytes_read_at: it read whatever it settled
               coalesce(l.bytes_read_at, l.recorded_at), l.confirmed
        FROM open_rows o LEFT JOIN there t ON t.key = o.key AND NOT o.deferred_key
             LEFT JOIN revalidations w ON w.row_id = o.row_id AND NOT o.done
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
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns[1:], HINT_SCHEMA, strict=True)]
    data = to_bytes(pa.Table.from_arrays(arrays, schema=HINT_SCHEMA))
    name = checked_name(f"{HINTS}/{columns[0][0][:32]}", data)
    state.write(name, data)
    return name


KEYS_PER_RANGE = 5000
RANGES_AT_ONCE = 8


def just_before(key: str) -> str | None:
    """Something that a listing may start after so that ``key`` is in it: S3 starts *after* the marker.

    Never one that ends in `/`, which the client would drop.
    """
    return key[:-1].rstrip("/") or None


def cut_ranges(keys: Sequence[str], per_range: int = KEYS_PER_RANGE) -> list[tuple[str | None, str | None]]:
    """Cuts sorted keys into ranges ``(start_after, end)``; ``end`` is exclusive, None has no bound.

    Together they cover every key from the first to the last and nothing twice.
    """
    if not keys:
        return []
    starts = list(dict.fromkeys(keys[i] for i in range(0, len(keys), per_range)))
    edges: list[str | None] = [*starts, None]
    return [(just_before(start) if start else None, end) for start, end in pairwise(edges) if start is not None]


def existing(store: Store, keys: Sequence[str]) -> Iterator[list[ObjectInfo]]:
    """Pages of what stands at the destination from the first of ``keys`` (sorted) to the last.

    Other keys come along, and some twice. Ranges are only for stores that list in the order of the keys'
    bytes, as S3 does: SeaweedFS lists folder by folder, and a range would miss what it puts elsewhere.
    """
    if not store.in_byte_order:
        yield from store.list()
        return
    pages: Queue[list[ObjectInfo] | None] = Queue(maxsize=64)
    abandoned = Event()

    def put(page: list[ObjectInfo] | None) -> None:
        while not abandoned.is_set():
            with contextlib.suppress(Full):
                pages.put(page, timeout=0.5)
                return

    def one(start_after: str | None, end: str | None) -> None:
        for page in store.list(start_after=start_after):
            wanted = [found for found in page if (end is None or found.key < end) and found.key <= keys[-1]]
            if wanted:
                put(wanted)
            if len(wanted) < len(page) or abandoned.is_set():
                return

    def all_of_them() -> None:
        try:
            with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
                for future in [pool.submit(one, *bounds) for bounds in cut_ranges(keys)]:
                    future.result()
        finally:
            put(None)

    with ThreadPoolExecutor(1) as starter:
        listing = starter.submit(all_of_them)
        try:
            while (page := pages.get()) is not None:
                yield page
            listing.result()
        finally:
            abandoned.set()
