"""Start of Ferry's child processes: their command line, their environment, and their end with the parent."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]  # the directory that contains the package `ferry`
_RUN = (
    "import importlib, sys; root, module = sys.argv[1:3]; root in sys.path or sys.path.append(root); "
    "sys.argv[:3] = [module]; {first}importlib.import_module(module).main()"
)
_ARROW = "from ferry.core.arrow_memory import limit_arrow_memory; limit_arrow_memory(); "

# The environment variables for a process that parses untrusted bytes: none of them holds credentials.
WITHOUT_CREDENTIALS = {"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG"}


def command(module: str, *, arrow: bool = False) -> list[str]:
    """Return the command that calls `main()` of a module of Ferry.

    `-P` keeps Python from importing from the working directory. ``arrow``: the module uses pyarrow.
    """
    return [sys.executable, "-P", "-c", _RUN.format(first=_ARROW if arrow else ""), str(_ROOT), module]


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
