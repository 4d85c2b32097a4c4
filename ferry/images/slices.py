"""Walking a body in slices, within its time.

A regular expression, a search and a struct hold Python's lock until they return, in any thread: a walk that takes a
slice at a time lets the event loop's thread have its turn in between.
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

SLICE_BYTES = 256 * 1024  # the slowest expression takes 5 ms for it
CHECK_S = 5.0  # of processor, for one body; a PNG of a gigabyte takes 1
_STEPS = 4096  # of a loop in Python: less than that are not worth a look at the clock
_NUMBERS = 8192  # at a time: eight million at once take 300 MB


class _Watch(threading.local):
    """How long this thread may go on with the body at hand, by its own clock."""

    until = math.inf
    name = ""


_watch = _Watch()


@contextlib.contextmanager
def time_limit(name: str, seconds: float) -> Iterator[None]:
    """What walks a body in the block raises ObjectError (``too_large``) once it has used so much processor time.

    The thread's processor time, and not the clock's: a busy machine must not make an image a failed row.
    """
    _watch.until, _watch.name = time.thread_time() + seconds, name
    try:
        yield
    finally:
        _watch.until = math.inf


def turn() -> None:
    """Called between two slices: raises ObjectError when the time is up."""
    if _watch.until != math.inf and time.thread_time() > _watch.until:
        raise ObjectError(
            ErrorClass.TOO_LARGE,
            f"the {_watch.name} takes too long to check (more than {CHECK_S:g} s); `checks: length` copies it",
        )


def steps(most: int) -> Iterator[int]:
    """As ``range``, within the time."""
    for number in range(most):
        if number % _STEPS == _STEPS - 1:
            turn()
        yield number


def find(data: Text, wanted: bytes, start: int = 0) -> int:
    """As ``data.find``."""
    size, beyond = len(data), len(wanted) - 1
    while start < size:
        at = data.find(wanted, start, start + SLICE_BYTES + beyond)
        if at >= 0:
            return at
        start += SLICE_BYTES
        turn()
    return -1


def rfind(data: Text, wanted: bytes, start: int = 0, end: int | None = None) -> int:
    """As ``data.rfind``."""
    end = len(data) if end is None else end
    last = end - len(wanted) + 1  # behind the last place where it may begin
    while last > start:
        first = max(start, last - SLICE_BYTES)
        at = data.rfind(wanted, first, last + len(wanted) - 1)
        if at >= 0:
            return at
        last = first
        turn()
    return -1


def search(pattern: re.Pattern[bytes], data: Text, start: int, longest: int) -> re.Match[bytes] | None:
    """As ``pattern.search``, of a pattern that looks at ``longest`` bytes at most."""
    size = len(data)
    while start < size:
        found = pattern.search(data, start, start + SLICE_BYTES + longest)
        if found is not None:
            return found
        start += SLICE_BYTES
        turn()
    return None


def behind(pattern: re.Pattern[bytes], data: Text, start: int) -> int:
    """Where the longest run of whole pieces ends. The pattern matches any number of them, also none; what does not end
    within a slice is not taken, and is for the caller to see to."""
    while True:
        found = pattern.match(data, start, start + SLICE_BYTES)
        assert found is not None  # it matches nothing at least
        if found.end() < start + SLICE_BYTES:
            return found.end()
        start = found.end()
        turn()


def count(data: Text, wanted: bytes, enough: int) -> int:
    """How often one byte is in it; stops counting past ``enough``."""
    found = 0
    for at in range(0, len(data), SLICE_BYTES):
        found += data[at : at + SLICE_BYTES].count(wanted)
        if found > enough:
            break
        turn()
    return found


def numbers(data: Data, order: str, code: str, many: int, at: int) -> Iterator[int]:
    """``many`` numbers from ``at`` on, of a struct's byte order and code; struct.error past the end."""
    width = struct.calcsize(order + code)
    for first in range(0, many, _NUMBERS):
        yield from struct.unpack_from(f"{order}{min(_NUMBERS, many - first)}{code}", data, at + first * width)
        turn()
