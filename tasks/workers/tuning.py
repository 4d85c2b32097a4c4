"""What a process is given before it moves many objects; only here are its own settings changed."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator

MOST_FILES = 65_536
_M_ARENA_MAX, ARENAS = -8, 2  # mallopt(3): heaps of the C library; one for each thread would be 10 MB more
# A new object's allocations are hardly ever cycles. The library's default, 700, looks through the youngest ones
# every few objects and through all of a chunk's rows now and then.
GC_THRESHOLDS = (20_000, 20, 100)


def arrow_without_numpy() -> None:
    """Loads Arrow so that it does not load NumPy, where neither is loaded yet: 11 MB that a run does not use.

    NumPy is an option of Arrow's. Whoever imports it later gets it; Arrow's tables do not become its arrays.
    """
    if "numpy" in sys.modules or "pyarrow" in sys.modules:
        return
    sys.modules["numpy"] = None  # type: ignore[assignment]  # what `import` takes for: there is none
    try:
        import pyarrow.parquet  # noqa: F401
    finally:
        del sys.modules["numpy"]


def skip_gc_at_exit() -> None:
    """At its end the process looks for no cycles: after Prefect's import that takes 0.4 s, and all goes anyway.

    Not where DuckDB is loaded: it counts what was not collected, and says so on the terminal.
    """
    atexit.register(gc.freeze)


def raise_file_limit() -> None:
    """Takes as many file descriptors as the system lets this process have; connections need them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_malloc_arenas() -> None:
    """Keeps the C library from making a heap for each thread; early, since those that are there stay."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


@contextlib.contextmanager
def for_many_objects() -> Iterator[None]:
    """What was loaded so far is not looked through for garbage again, and what comes less often; until the end."""
    before = gc.get_threshold()
    gc.freeze()  # without a look first: it would take a tenth of a second, and what was loaded has few cycles
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
