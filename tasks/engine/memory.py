"""A bound on the memory that a library takes for a file that a stranger wrote."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_PAGE = resource.getpagesize()


@contextlib.contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """Inside the block this process gets so much more address space at most; what asks for more raises MemoryError.

    Only Linux keeps such a bound (setrlimit(2), RLIMIT_AS); elsewhere the block runs without.
    """
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    bounds = [bound for bound in (taken + more_bytes, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
