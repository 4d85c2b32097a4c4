"""The processes that a run starts: how they are started, and messages over a pipe (a number, a length, bytes)."""

from __future__ import annotations

import ctypes
import signal
import struct
import sys
from pathlib import Path
from typing import Any

_HEAD = struct.Struct(">iQ")  # a number (an exit code, 0 in requests), the length of the message

_ROOT = Path(__file__).resolve().parents[2]  # what holds the package `tasks`
_RUN = (
    "import runpy, sys; root, module = sys.argv[1:3]; root in sys.path or sys.path.append(root); "
    "sys.argv[1:3] = []; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)

# What a process that reads strangers' bytes is given of the environment: nothing that opens another service.
WITHOUT_CREDENTIALS = {"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG"}


def command(module: str) -> list[str]:
    """What starts one of Ferry's modules. `-P`: nothing is imported from a working directory, whosever it is."""
    return [sys.executable, "-P", "-c", _RUN, str(_ROOT), module]


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
