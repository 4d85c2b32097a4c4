"""The planner process of a forked command, as a fork of that command: it need not load its libraries again.

That is half of a processor second for each of several hundred commands. Commands that are started as programs, and the
tests of the planner process itself, have the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any, BinaryIO

from ferry.processes import planner_process

_popen = subprocess.Popen


class ForkedPlanner:
    """What PlannerProcess uses of a Popen object, for a fork that runs the planner's main function."""

    def __init__(self, cwd: Any) -> None:
        (to_read, to_write), (answer_read, answer_write) = os.pipe(), os.pipe()
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                os.setsid()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.dup2(to_read, 0)
                os.dup2(answer_write, 1)
                os.closerange(3, 256)
                os.chdir(cwd)
                sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")  # the old ones may hold unwritten text
                planner_process.main()
                os._exit(0)
            finally:
                os._exit(1)
        os.close(to_read)
        os.close(answer_write)
        self.stdin: BinaryIO = os.fdopen(to_write, "wb", buffering=0)
        self.stdout: BinaryIO = os.fdopen(answer_read, "rb")

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def _start(command: Any, **given: Any) -> Any:
    # A fork has only the thread that forks: what other threads had locked would stay locked.
    if threading.active_count() > 1 or "ferry.processes.planner_process" not in command:
        return _popen(command, **given)
    return ForkedPlanner(given["cwd"])


def fork_planners() -> None:
    """Loads what the planner process loads, and has planner processes of forks of this process forked from them."""
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # idle threads must not exist when it forks
    import duckdb  # noqa: F401

    import ferry.planning
    import ferry.reconcile  # noqa: F401

    vars(planner_process)["subprocess"] = _Subprocess


class _Subprocess:
    """`subprocess`, as planner_process.py uses it."""

    Popen = staticmethod(_start)
    PIPE = subprocess.PIPE
