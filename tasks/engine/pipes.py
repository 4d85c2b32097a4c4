"""Messages between a run and the processes that it starts: a number, a length, bytes; over a pipe."""

from __future__ import annotations

import ctypes
import signal
import struct
import sys
from typing import Any

_HEAD = struct.Struct(">iQ")  # a number (an exit code, 0 in requests), the length of the message


def write(stream: Any, number: int, message: bytes) -> None:
    """Raises BrokenPipeError when the other end is gone."""
    stream.write(_HEAD.pack(number, len(message)) + message)
    stream.flush()


def read(stream: Any) -> tuple[int, bytes] | None:
    """The next message, or None when the other end is gone."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    number, length = _HEAD.unpack(head)
    message = stream.read(length)
    return (number, message) if len(message) == length else None


def die_with_parent() -> None:
    """This process ends when the thread that started it does, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
