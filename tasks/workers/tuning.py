"""Process-wide tuning for large transfers: file limit, malloc arenas, garbage collection."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import resource
from collections.abc import Iterator

MOST_FILES = 65_536
_M_ARENA_MAX, ARENAS = -8, 2  # mallopt(3): heaps of the C library; one per thread would take 10 MB more
# The allocations of a transfer hardly ever form cycles. The default of 700 collects the youngest generation every few
# objects, and now and then scans all rows of a chunk.
GC_THRESHOLDS = (20_000, 20, 100)


def skip_gc_at_exit() -> None:
    """Skip the last garbage collection at exit: with Prefect loaded, it takes 0.4 s and frees nothing of use.

    Not for processes with DuckDB, which prints objects that were not collected on the terminal.
    """
    atexit.register(gc.freeze)


def raise_file_limit() -> None:
    """Raise the limit of open files, which connections need, as far as the system allows, up to 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_malloc_arenas() -> None:
    """Limit the heaps that the C library makes for threads. Call it early: existing heaps stay."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


@contextlib.contextmanager
def for_many_objects() -> Iterator[None]:
    """Exclude existing objects from garbage collection, and collect new ones less often, until the block ends."""
    before = gc.get_threshold()
    gc.freeze()  # without a collection first, which takes 0.1 s and would find few cycles
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
