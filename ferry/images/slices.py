"""Searches through a body in slices, within a time limit.

A regular expression, a search and a struct hold Python's lock until they return, in any thread. Between two slices the
event loop's thread can take it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import re
import struct
import threading
import time
from collections.abc import Iterator

from ferry.core import ErrorClass, ObjectError

Data = bytes | mmap.mmap
Text = Data | bytearray  # also what was unpacked

SLICE_BYTES = 256 * 1024  # the slowest regular expression takes 5 ms
CHECK_S = 5.0  # processor time for one body; a PNG of a gigabyte takes 1
_STEPS = 4096  # of a loop in Python, between two looks at the clock
_NUMBERS = 8192  # at a time: eight million at once take 300 MB


class _Watch(threading.local):
    """The time limit of the body that this thread walks, on the thread's own clock."""

    until = math.inf
    name = ""


_watch = _Watch()


@contextlib.contextmanager
def time_limit(name: str, seconds: float) -> Iterator[None]:
    """Limits the processor time of the walk in the block, which raises ObjectError (``too_large``) after it.

    It is the thread's processor time and not the clock's: a busy machine must not make an image a failed row.
    """
    _watch.until, _watch.name = time.thread_time() + seconds, name
    try:
        yield
    finally:
        _watch.until = math.inf


def turn() -> None:
    """Raises ObjectError when the time is up; called between two slices."""
    if _watch.until != math.inf and time.thread_time() > _watch.until:
        raise ObjectError(
            ErrorClass.TOO_LARGE,
            f"the {_watch.name} takes too long to check (more than {CHECK_S:g} s); `checks: length` copies it",
        )


def steps(most: int) -> Iterator[int]:
    """Yields what ``range`` does, within the time limit."""
    for number in range(most):
        if number % _STEPS == _STEPS - 1:
            turn()
        yield number


def find(data: Text, wanted: bytes, start: int = 0) -> int:
    """Returns what ``data.find`` does."""
    size, beyond = len(data), len(wanted) - 1
    while start < size:
        at = data.find(wanted, start, start + SLICE_BYTES + beyond)
        if at >= 0:
            return at
        start += SLICE_BYTES
        turn()
    return -1


def rfind(data: Text, wanted: bytes, start: int = 0, end: int | None = None) -> int:
    """Returns what ``data.rfind`` does."""
    end = len(data) if end is None else end
    last = end - len(wanted) + 1  # behind the last position where it may begin
    while last > start:
        first = max(start, last - SLICE_BYTES)
        at = data.rfind(wanted, first, last + len(wanted) - 1)
        if at >= 0:
            return at
        last = first
        turn()
    return -1


def search(pattern: re.Pattern[bytes], data: Text, start: int, longest: int) -> re.Match[bytes] | None:
    """Returns what ``pattern.search`` does; the pattern matches ``longest`` bytes at most."""
    size = len(data)
    while start < size:
        found = pattern.search(data, start, start + SLICE_BYTES + longest)
        if found is not None:
            return found
        start += SLICE_BYTES
        turn()
    return None


def behind(pattern: re.Pattern[bytes], data: Text, start: int) -> int:
    """Returns where a run of complete pieces ends. The pattern matches any number of them, also none. A piece that does
    not end within a slice is not part of the run."""
    while True:
        found = pattern.match(data, start, start + SLICE_BYTES)
        assert found is not None  # it also matches an empty text
        if found.end() < start + SLICE_BYTES:
            return found.end()
        start = found.end()
        turn()


def numbers(data: Data, order: str, code: str, many: int, at: int) -> Iterator[int]:
    """Yields ``many`` numbers from ``at`` on, of a struct's byte order and code; raises struct.error past the end."""
    width = struct.calcsize(order + code)
    for first in range(0, many, _NUMBERS):
        yield from struct.unpack_from(f"{order}{min(_NUMBERS, many - first)}{code}", data, at + first * width)
        turn()
