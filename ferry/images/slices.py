"""Searches of a body in slices, within a time limit.

A regular expression, a search and a struct hold the GIL until they return, in any thread. Between two slices the event
loop's thread can take it.
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
Text = Data | bytearray  # also decompressed text

SLICE_BYTES = 256 * 1024  # the slowest regular expression takes 5 ms
CHECK_S = 5.0  # processor time for one body; a PNG of a gigabyte takes 1
_STEPS = 4096  # of a loop in Python, between two checks of the time limit
_NUMBERS = 8192  # unpacked at a time: eight million at once take 300 MB


class _Deadline(threading.local):
    """The time limit of the body that this thread checks, in the thread's processor time."""

    at_s = math.inf
    name = ""


_deadline = _Deadline()


@contextlib.contextmanager
def time_limit(name: str, seconds: float) -> Iterator[None]:
    """Limits the processor time of the walk in the block, which raises ObjectError (``too_large``) after it.

    The limit is on the thread's processor time, not wall-clock time: a busy machine must not make an image a failed
    row.
    """
    _deadline.at_s, _deadline.name = time.thread_time() + seconds, name
    try:
        yield
    finally:
        _deadline.at_s = math.inf


def check_time() -> None:
    """Raises ObjectError if the time limit is exceeded. Called between two slices."""
    if _deadline.at_s != math.inf and time.thread_time() > _deadline.at_s:
        raise ObjectError(
            ErrorClass.TOO_LARGE,
            f"the {_deadline.name} takes too long to check (more than {CHECK_S:g} s); `checks: length` copies it",
        )


def steps(count: int) -> Iterator[int]:
    """Yields the numbers of ``range(count)``, within the time limit."""
    for number in range(count):
        if number % _STEPS == _STEPS - 1:
            check_time()
        yield number


def find(data: Text, wanted: bytes, start: int = 0) -> int:
    """Returns the same as ``data.find``."""
    size, overlap = len(data), len(wanted) - 1
    while start < size:
        at = data.find(wanted, start, start + SLICE_BYTES + overlap)
        if at >= 0:
            return at
        start += SLICE_BYTES
        check_time()
    return -1


def rfind(data: Text, wanted: bytes, start: int = 0, end: int | None = None) -> int:
    """Returns the same as ``data.rfind``."""
    end = len(data) if end is None else end
    last = end - len(wanted) + 1  # after the last position where it may begin
    while last > start:
        first = max(start, last - SLICE_BYTES)
        at = data.rfind(wanted, first, last + len(wanted) - 1)
        if at >= 0:
            return at
        last = first
        check_time()
    return -1


def search(pattern: re.Pattern[bytes], data: Text, start: int, longest: int) -> re.Match[bytes] | None:
    """Returns the same as ``pattern.search``. The pattern matches at most ``longest`` bytes."""
    size = len(data)
    while start < size:
        found = pattern.search(data, start, start + SLICE_BYTES + longest)
        if found is not None:
            return found
        start += SLICE_BYTES
        check_time()
    return None


def run_end(pattern: re.Pattern[bytes], data: Text, start: int) -> int:
    """Returns where a run of complete pieces ends. The pattern matches any number of pieces, also none.

    A piece that does not end within a slice is not part of the run.
    """
    while True:
        found = pattern.match(data, start, start + SLICE_BYTES)
        assert found is not None  # it also matches an empty text
        if found.end() < start + SLICE_BYTES:
            return found.end()
        start = found.end()
        check_time()


def numbers(data: Data, order: str, code: str, count: int, at: int) -> Iterator[int]:
    """Yields ``count`` numbers from ``at`` on, in a struct's byte order and code. Raises struct.error past the end."""
    width = struct.calcsize(order + code)
    for first in range(0, count, _NUMBERS):
        yield from struct.unpack_from(f"{order}{min(_NUMBERS, count - first)}{code}", data, at + first * width)
        check_time()
