"""Search for existing objects at the destination, whose result is written as hints for each chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from ferry.core import ATTEMPTS, Fatal, ObjectError, UserError, worth_another_try
from ferry.job import Job, OnExisting
from ferry.planning.contenders import hash_conditions
from ferry.planning.hints import KnownCopies, write_hints
from ferry.state import HINTS, ChunkRef, Existing, State, with_hints
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


def are_hints_needed(job: Job, how: Existing, rechecks: int, chunks: Iterable[ChunkRef]) -> bool:
    """Returns whether a chunk has to be told something of single rows: not in a first plan of a job that overwrites.

    ``rechecks`` is the number of copies to recheck, and ``chunks`` are those of earlier plans.
    """
    return how == "listed" or rechecks > 0 or job.dedupe or any(0 < chunk.done < chunk.rows for chunk in chunks)


def find_existing(
    con: duckdb.DuckDBPyConnection,
    state: State,
    job: Job,
    access: Access,
    chunks: Mapping[int, ChunkRef],
    found: tuple[Existing, str],
    known: KnownCopies | None,
) -> tuple[list[ChunkRef], str]:
    """Lists the destination if that was ``found`` to be the way (:func:`how_to_find`), and writes hints.

    ``chunks``: by their position in `open_rows`, which has their rows to do. ``known`` has the copies to recheck, and
    is None if no chunk needs a hint.
    Returns the chunks with their hints, and the way in which existing objects are found, as text. Raises Fatal when the
    destination cannot be listed at present.
    """
    how, text = found
    if known is None:
        return [_with_existing(chunk, how) for chunk in chunks.values()], text
    con.execute("CREATE TABLE existing (row_no BIGINT, size BIGINT, etag VARCHAR)")
    if how == "listed":
        try:
            text += f": {_list(con, state, job, access, known.at_once):,} of the keys to do exist"
        except ObjectError as error:
            if worth_another_try(error):  # a million HEADs would only add load to a failing store
                raise Fatal(
                    f"the destination could not be listed in {ATTEMPTS} tries ({error.message}). Run the job again "
                    "later"
                ) from None
            how = "head"
            text = f"found by a HEAD for each row, since the destination cannot be listed ({error.message})"
    known.find_equal(job)
    unfinished = {position: chunk for position, chunk in chunks.items() if chunk.done < chunk.rows}
    hints = write_hints(con, state, unfinished, known)
    return [_with_existing(chunk, how, hints.get(position, "")) for position, chunk in chunks.items()], text


def _with_existing(chunk: ChunkRef, how: Existing, hints: str = "") -> ChunkRef:
    """Returns an unfinished chunk with what this run's plan knows of its rows, and any other as it is."""
    return with_hints(chunk, chunk.done, how, hints) if chunk.done < chunk.rows else chunk


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


def _list(con: duckdb.DuckDBPyConnection, state: State, job: Job, access: Access, at_once: int) -> int:
    """Fills `existing` with the rows to do whose keys exist at the destination, and returns the number of keys."""
    store = open_store(job.destination.uri, access, state.spool_dir, create=True)
    con.execute(
        """
        CREATE TABLE wanted AS
        SELECT m.key, m.row_no FROM manifest m SEMI JOIN open_rows USING (row_no) WHERE NOT m.deferred_key;
        CREATE TABLE found (key VARCHAR, size BIGINT, etag VARCHAR)
        """
    )
    lines = ((found.key, found.size, found.etag) for page in existing_pages(store, _sorted_keys(con)) for found in page)
    for part in _batched(lines, FOUND_AT_ONCE):  # each one is compared with all keys
        columns = zip(*part, strict=True)
        con.register(
            "page", pa.table([pa.array(c, f.type) for c, f in zip(columns, _FOUND, strict=True)], schema=_FOUND)
        )
        con.execute("INSERT INTO found SELECT page.* FROM page SEMI JOIN wanted USING (key)")
        con.unregister("page")
    for condition in hash_conditions(con, "found", "hash(key)", at_once):  # an object may have been listed twice
        con.execute(
            f"""
            INSERT INTO existing SELECT w.row_no, f.size, f.etag FROM wanted w JOIN (
                SELECT key, any_value(size) AS size, any_value(etag) AS etag FROM found WHERE {condition} GROUP BY key
            ) f ON f.key = w.key
            """
        )
    (count,) = con.execute("SELECT count(DISTINCT key) FROM wanted SEMI JOIN existing USING (row_no)").fetchall()[0]
    con.execute("DROP TABLE wanted; DROP TABLE found")
    return int(count)


def _sorted_keys(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Yields the keys in `wanted` in their order, while ``con`` serves other queries."""
    with con.cursor() as reading:
        reading.execute("SELECT DISTINCT key FROM wanted ORDER BY key")
        while keys := reading.fetchmany(KEYS_PER_RANGE):
            yield from (key for (key,) in keys)


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
