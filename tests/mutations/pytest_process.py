"""Runs pytest in a copy of the tree, in a process that has the large libraries: their import is half of a short run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ARGUMENTS = ("-x", "-q", "--no-header", "--tb=no", "--timeout=120", "-m", "not slow", "-o", "addopts=")
_OURS = frozenset({"tests", "tasks", "flows", "ferry", "demo"})
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["pytest", "hypothesis", "duckdb", "aiohttp.web", "boto3", "cyclopts", "pydantic", "urllib3", "yaml"]
)


def exit_code(tree: Path, tests: Sequence[str], within_s: float) -> int | None:
    """pytest's exit code, None where it takes longer. The test that failed the time before is run first."""
    process = _PROCESSES.Process(target=_run, args=(str(tree), [*ARGUMENTS, "--failed-first", *tests]))
    process.start()
    try:
        process.join(within_s)
        return process.exitcode
    finally:
        if process.exitcode is None and process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()


def _run(tree: str, arguments: list[str]) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    ours = str(Path(__file__).parents[2])
    for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:  # of this tree, and not of the copy
        del sys.modules[name]
    sys.path[:] = [tree, *(path for path in sys.path if path not in ("", ours))]
    os.environ["PYTHONPATH"] = tree
    os.chdir(tree)
    import pytest

    sys.exit(int(pytest.main(arguments)))
