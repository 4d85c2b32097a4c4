"""Search for existing objects at the destination, whose result is written as hints for each chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from ferry.core import ATTEMPTS, BUCKET_SCHEMES, Fatal, ObjectError, UserError, worth_another_try
from ferry.job import Checks, Job, OnExisting
from ferry.planning.chunk_files import DONE, HELD_JOINED, load_held
from ferry.state import HINT_SCHEMA, HINTS, ChunkRef, Existing, State, checked_name, to_bytes, with_hints
from ferry.storage import Access, FoldedName, Folder, ObjectInfo, Store, open_store

if TYPE_CHECKING:
    import duckdb


T = TypeVar("T")
FOUND_AT_ONCE = 200_000  # listed objects that are compared with the keys to do at once
_FOUND = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
MAX_HEADS = 500  # with more rows to do, the destination is listed instead


def how_to_find(policy: OnExisting, rows: int) -> tuple[Existing, str]:
    """Returns how existing objects are found, and the same as text for the user.

    | policy | rows to do | how |
    |---|---|---|
    | overwrite | any | not at all |
    | any other | 0 | not at all |
    | any other | up to 500 | HEAD |
    | any other | more | listing |
    """
    if policy is OnExisting.OVERWRITE:
        return "unknown", "not checked (on_existing: overwrite)"
    if rows == 0:
        return "unknown", "not checked: there is nothing to do"
    if rows <= MAX_HEADS:
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
    """Lists the destination if that is cheaper than HEADs, and writes the hints of unfinished chunks.

    ``pending`` is the number of rows to do in earlier chunks. Returns the chunks with their hints, and the way in which
    existing objects are found, as text. Raises Fatal when the destination cannot be listed at present. With ``dry``
    nothing is listed or written.
    """
    (selected,) = con.execute("SELECT count(*) FROM selected").fetchall()[0]
    how, text = how_to_find(job.on_existing, selected + pending)
    if dry:
        return chunks, text
    to_do = {chunk.digest: chunk for chunk in chunks if chunk.done < chunk.rows}
    hints: dict[str, str] = {}
    (rechecks,) = con.execute("SELECT count(*) FROM revalidations").fetchall()[0]
    # else there is nothing to say of single rows, such as in the first plan of a job that overwrites
    if how == "listed" or rechecks or job.dedupe or any(chunk.done for chunk in to_do.values()):
        how, text, hints = _look(con, state, job, access, list(to_do.values()), how, text)
    return [
        with_hints(chunk, chunk.done, how, hints.get(chunk.digest, "")) if chunk.digest in to_do else chunk
        for chunk in chunks
    ], text


def _look(
    con: duckdb.DuckDBPyConnection,
    state: State,
    job: Job,
    access: Access,
    unfinished: Sequence[ChunkRef],
    how: Existing,
    text: str,
) -> tuple[Existing, str, dict[str, str]]:
    load_held(con, state, unfinished)
    columns = f"h.chunk, h.row_id, m.key, m.deferred_key, {DONE} AS done"
    con.execute(f"CREATE OR REPLACE TABLE open_rows AS SELECT {columns} {HELD_JOINED}")
    con.execute("CREATE TABLE existing (key VARCHAR, size BIGINT, etag VARCHAR)")
    if how == "listed":
        try:
            text += f": {_list(con, state, job, access):,} of the keys to do exist"
        except ObjectError as error:
            if worth_another_try(error):  # a million HEADs would only add load to a failing store
                raise Fatal(
                    f"the destination could not be listed in {ATTEMPTS} tries ({error.message}). Run the job again "
                    "later"
                ) from None
            how = "head"
            text = f"found by a HEAD for each row, since the destination cannot be listed ({error.message})"
    _find_equal_copies(con, job)
    return how, text, _write_hints(con, state)


def delete_old_hints(state: State, chunks: Sequence[ChunkRef]) -> None:
    """Deletes the hints of earlier plans; ``chunks`` are those of the plan in force."""
    state.delete(set(state.list(HINTS)) - {chunk.hints for chunk in chunks})


def name_folding_of(uri: str) -> frozenset[FoldedName]:
    """Returns which differences in names a directory ignores. Raises UserError for one that cannot be written to."""
    folder = Folder(Path(unquote(urlsplit(uri).path)), "plan", create=True)
    try:
        return folder.folded_names()
    except OSError as exc:
        raise UserError(
            f"destination: cannot write to {folder.root}: {exc.strerror}. Set `destination` to a writable directory"
        ) from None
    finally:
        folder.close()


def _list(con: duckdb.DuckDBPyConnection, state: State, job: Job, access: Access) -> int:
    """Fills `existing` with the keys to do that exist at the destination, and returns their number."""
    store = open_store(job.destination.uri, access, state.spool_dir, create=True)
    con.execute("CREATE TABLE wanted AS SELECT DISTINCT key FROM open_rows WHERE NOT done AND NOT deferred_key")
    lines = ((found.key, found.size, found.etag) for page in existing_pages(store, _sorted_keys(con)) for found in page)
    for part in _batched(lines, FOUND_AT_ONCE):  # each one is compared with all keys
        columns = zip(*part, strict=True)
        con.register("found", pa.table([pa.array(c, f.type) for c, f in zip(columns, _FOUND, strict=True)], _FOUND))
        con.execute("INSERT INTO existing SELECT found.* FROM found SEMI JOIN wanted USING (key)")
        con.unregister("found")
    (count,) = con.execute("SELECT count(DISTINCT key) FROM existing").fetchall()[0]
    return int(count)


def _sorted_keys(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Yields the keys in `wanted` in their order, while ``con`` serves other queries."""
    with con.cursor() as reading:
        reading.execute("SELECT key FROM wanted ORDER BY key")
        while keys := reading.fetchmany(KEYS_PER_RANGE):
            yield from (key for (key,) in keys)


def _find_equal_copies(con: duckdb.DuckDBPyConnection, job: Job) -> None:
    """Fills `equal_copies`: for rows to do, a copy of an earlier run with the digest that the manifest has for them.

    Its attributes are known to be those of the job and of its bytes: it was written under the present settings, with a
    check of its type, not from a bucket, and has lost none. A key that `ferry verify` found missing or altered is left
    out, since other rows may share it.
    """
    types_are_checked = job.checks in (Checks.IMAGE, Checks.DECODE)
    con.execute(
        f"""
        CREATE OR REPLACE TABLE equal_copies AS
        WITH wanted AS (
            SELECT o.row_id, m.sha256, m.md5 FROM open_rows o JOIN manifest m USING (row_id)
            WHERE {job.dedupe and types_are_checked} AND NOT o.done AND NOT o.deferred_key
                  AND coalesce(m.sha256, m.md5) IS NOT NULL
        ), copies AS (
            SELECT l.row_id AS copy_id, l.sha256, l.md5 FROM latest l
            WHERE {job.dedupe and types_are_checked} AND l.status = 'copied' AND l.settings_digest = $settings
                  AND l.confirmed IS NOT NULL AND l.dest_etag IS NOT NULL AND l.size IS NOT NULL
                  AND l.sha256 IS NOT NULL AND l.md5 IS NOT NULL AND l.content_type IS NOT NULL
                  AND lower(left(coalesce(l.address, l.source), 5)) NOT IN (SELECT unnest($buckets))
                  AND l.lost_attributes IS NULL
                  AND l.key NOT IN (SELECT key FROM latest WHERE status = 'pending' AND key IS NOT NULL)
        )
        SELECT w.row_id, min(c.copy_id) AS copy_id FROM wanted w JOIN copies c ON c.sha256 = w.sha256 GROUP BY 1
        UNION ALL
        SELECT w.row_id, min(c.copy_id) FROM wanted w JOIN copies c ON c.md5 = w.md5 AND w.sha256 IS NULL
        GROUP BY 1 HAVING min(c.sha256) = max(c.sha256)  -- else the MD5 names several bodies
        """,
        {"settings": job.settings_digest(), "buckets": list(BUCKET_SCHEMES)},
    )


def _write_hints(con: duckdb.DuckDBPyConnection, state: State) -> dict[str, str]:
    """Writes one file for each chunk with hints, and returns the files' names by chunk.

    Hints are rows that are done, existing objects under a row's key, copies to recheck, and other rows' copies with the
    row's digest.
    """
    reader = con.execute("""
        SELECT o.chunk, o.row_id, o.done, any_value(e.size), any_value(e.etag), r.revalidate, l.key, l.size, l.md5,
               l.sha256, l.content_type, l.source_etag, l.source_last_modified, l.dest_etag,
               -- an earlier Ferry did not write bytes_read_at, and read the bytes of each row
               coalesce(CASE WHEN r.row_id IS NOT NULL THEN l.bytes_read_at END, l.recorded_at), l.confirmed, l.address,
               l.attributes_sha256, l.lost_attributes
        FROM open_rows o LEFT JOIN existing e ON e.key = o.key AND NOT o.deferred_key
             LEFT JOIN revalidations r ON r.row_id = o.row_id AND NOT o.done
             LEFT JOIN equal_copies q ON q.row_id = o.row_id AND r.row_id IS NULL
             LEFT JOIN latest l ON l.row_id = coalesce(r.row_id, q.copy_id)
        WHERE o.done OR e.key IS NOT NULL OR r.row_id IS NOT NULL OR q.row_id IS NOT NULL GROUP BY ALL ORDER BY o.chunk
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


def marker_before(key: str) -> str | None:
    """Returns a marker before ``key``, since S3 lists the keys *after* `start-after`; None lists from the start.

    It never ends in `/`, which the client would remove.
    """
    return key[:-1].rstrip("/") or None


def key_ranges(keys: Iterable[str], per_range: int = KEYS_PER_RANGE) -> Iterator[tuple[str | None, list[str]]]:
    """Divides sorted keys into ranges, and yields of each the marker from which a listing finds its keys, and these.

    The part between a marker and the first key of its range may be covered twice.
    """
    for part in _batched(keys, per_range):
        yield marker_before(part[0]), part


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def existing_pages(store: Store, keys: Iterable[str]) -> Iterator[list[ObjectInfo]]:
    """Yields the objects at the destination that have one of ``keys`` (sorted), some of them twice, and maybe others.

    Ranges are listed in parallel only in a store that lists in the byte order of keys, as S3 does. SeaweedFS lists
    folder by folder, so a range would miss keys there. Of a range only the objects with these keys are kept in memory.
    """
    if not store.in_byte_order:
        yield from store.list()
        return

    def list_range(start_after: str | None, wanted: list[str]) -> list[ObjectInfo]:
        found, keys = [], frozenset(wanted)
        for page in store.list(start_after=start_after):
            found += [each for each in page if each.key in keys]
            if page and page[-1].key >= wanted[-1]:
                break
        return found

    pool = ThreadPoolExecutor(RANGES_AT_ONCE)
    try:
        listed: deque[Future[list[ObjectInfo]]] = deque()
        for part in key_ranges(keys):
            listed.append(pool.submit(list_range, *part))
            if len(listed) == RANGES_AT_ONCE:
                yield listed.popleft().result()
        while listed:
            yield listed.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
