"""Which keys exist at the destination: one listing, split by key ranges (SEMANTICS: on_existing)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from queue import Full, Queue
from threading import Event

from tasks.engine.store import Found, Store

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


def existing(store: Store, keys: Sequence[str]) -> Iterator[list[Found]]:
    """Pages of what stands at the destination from the first of ``keys`` (sorted) to the last.

    Other keys come along, and some twice. Ranges are only for stores that list in the order of the keys'
    bytes, as S3 does: SeaweedFS lists folder by folder, and a range would miss what it puts elsewhere.
    """
    if not store.in_byte_order:
        yield from store.list()
        return
    pages: Queue[list[Found] | None] = Queue(maxsize=64)
    abandoned = Event()

    def put(page: list[Found] | None) -> None:
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
