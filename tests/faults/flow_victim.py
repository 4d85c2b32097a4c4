"""`ferry` in a process that is killed at a named moment, with everything that belongs to it.

`python -m tests.faults.flow_victim PROCESS POINT NUMBER ARGUMENTS...`: SIGKILL to the flow's process when POINT is
reached for the NUMBERth time in PROCESS (`flow`, or `plan` for the one that plans, counts and folds).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ferry.planning import chunk_files, collisions, planner
from ferry.processes import planner_process
from ferry.reconcile import finish
from ferry.state import lease, ledger
from ferry.state.files import DirectoryState
from ferry.transfer import chunk
from ferry.transfer.object import ObjectTransfer
from tasks import report, result_store, run, transfer
from tests.faults.victim import Killer

IN_FLOW: dict[str, tuple[Any, str]] = {
    "upload": (ObjectTransfer, "transfer"),  # after: the object is stored, and no outcome is recorded
    "write": (DirectoryState, "write"),
    "rename": (os, "replace"),
    "sync": (os, "fsync"),
    "flush": (ledger, "append_outcomes"),
    "merge of a chunk's parts": (chunk.ChunkRun, "_merge_parts"),
    "lease": (DirectoryState, "swap"),
    "handing out a chunk": (transfer, "has_room"),
    "result of a chunk": (result_store.StateResults, "write_path"),  # the last chunk returns
    "booking a chunk": (transfer, "_record"),
    "planning": (run.Run, "plan"),
    "accounts": (run.Run, "child"),
    "artifacts": (report, "create_markdown_artifact"),  # the lease is given back by then
}
IN_PLAN: dict[str, tuple[Any, str]] = {
    "rename": (os, "replace"),
    "sync": (os, "fsync"),
    "loading the manifest": (planner, "load_manifest"),
    "recording problems": (collisions, "write_outcomes"),
    "writing chunks": (chunk_files, "write_chunks"),
    "looking for existing objects": (planner, "find_existing"),
    "compaction": (ledger, "compact_ledger"),
    "finish": (finish, "finish_run"),
}


class FlowKiller(Killer):
    """Kills another process, and goes along."""

    def __init__(self, point: str, number: int, pid: int) -> None:
        super().__init__(point, number)
        self._pid = pid

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def in_plan(real: Callable[..., Any], given: list[str]) -> Callable[..., Any]:
    """Popen for ferry.processes.planner_process: the process that plans is a victim as well."""

    def start(command: list[str], **more: Any) -> Any:
        return real([command[0], "-m", "tests.faults.flow_victim", "in plan", *given, str(os.getpid())], **more)

    return start


def main(process: str, point: str, number: int, arguments: list[str]) -> None:
    chunk.FLUSH_ROWS, chunk.FLUSH_S = 3, 0.05
    lease.RENEW_S = 0.1
    if process == "in plan":
        FlowKiller(point, number, int(arguments[0])).watch(IN_PLAN)
        planner_process.main()
        return
    if process == "plan":
        start = in_plan(subprocess.Popen, [point, str(number)])
        vars(planner_process)["subprocess"] = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE)
    else:
        FlowKiller(point, number, os.getpid()).watch(IN_FLOW)
    from flows.cli import main as cli

    sys.argv = ["ferry", *arguments]
    cli.main()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
