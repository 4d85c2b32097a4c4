"""The processes that a run starts: how they are started, and messages over a pipe (a number, a length, bytes)."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]  # what holds the package `ferry`
_RUN = (
    "import importlib, sys; root, module = sys.argv[1:3]; root in sys.path or sys.path.append(root); "
    "sys.argv[:3] = [module]; importlib.import_module(module).main()"
)

# What a process that reads strangers' bytes is given of the environment: nothing that opens another service.
WITHOUT_CREDENTIALS = {"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG"}


def command(module: str) -> list[str]:
    """Returns the command that calls `main()` of one of Ferry's modules. `-P`: it imports nothing from the working
    directory."""
    return [sys.executable, "-P", "-c", _RUN, str(_ROOT), module]


def die_with_parent() -> None:
    """This process ends when the thread that started it does, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
