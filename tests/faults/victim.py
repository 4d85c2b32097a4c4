"""One run of the engine's (lease, plan, transfer, fold) in a process that kills itself at a named moment.

`python -m tests.faults.victim SETUP.json [POINT NUMBER]`: SIGKILL when POINT is reached for the NUMBERth time. Without
a point it lives, and writes how often each was reached to the setup's `reached`.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from ferry.job.model import Job
from ferry.planning import chunk_files, collisions, hints, planner
from ferry.reconcile import finish, prune
from ferry.state import lease, ledger
from ferry.state.files import DirectoryState
from ferry.storage.access import Access
from ferry.transfer import chunk, dedupe
from ferry.transfer import object as transfer
from tests.support import helpers

ROOT = Path(__file__).parents[2]
# What is wrapped: the moment before the call and the one after it are points.
CALLS: dict[str, tuple[Any, str]] = {
    "upload": (transfer.ObjectTransfer, "transfer"),  # after: the object is stored, and no outcome is recorded
    "copy by the server": (dedupe.Dedupe, "_copy"),
    "write": (DirectoryState, "write"),
    "rename": (os, "replace"),
    "sync": (os, "fsync"),
    "flush": (ledger, "append_outcomes"),
    "delete": (DirectoryState, "delete"),
    "move a file in": (DirectoryState, "write_file"),
    "merge of a chunk's parts": (chunk.ChunkRun, "_merge_parts"),
    "compaction": (ledger, "compact_ledger"),
    "loading the manifest": (planner, "load_manifest"),
    "recording problems": (collisions, "write_outcomes"),
    "writing chunks": (chunk_files, "write_chunks"),
    "looking for existing objects": (planner, "find_existing"),
    "hints": (hints, "_write"),
    "finish": (finish, "finish_run"),
    "prune": (prune, "prune_removed"),
    "deletion": (prune, "_delete_one"),  # after: the object is deleted, and no outcome is recorded
    "lease": (DirectoryState, "swap"),
}
ASYNC = ("upload", "copy by the server", "deletion")


class Killer:
    """Counts the points; at one of them the process ends as by `kill -9`."""

    def __init__(self, point: str = "", number: int = 0) -> None:
        self.reached: Counter[str] = Counter()
        self._point, self._number = point, number
        self._lock = threading.Lock()

    def pass_by(self, point: str) -> None:
        with self._lock:
            self.reached[point] += 1
            if point == self._point and self.reached[point] == self._number:
                self._kill()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, calls: Mapping[str, tuple[Any, str]] = CALLS) -> None:
        for name, (owner, attribute) in calls.items():
            call = getattr(owner, attribute)
            wrapped = self._async(name, call) if name in ASYNC else self._sync(name, call)
            places = helpers.bindings(call) if isinstance(owner, ModuleType) else []
            for place, bound in places or [(owner, attribute)]:
                setattr(place, bound, wrapped)

    def _sync(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watched(*args: Any, **more: Any) -> Any:
            self.pass_by(f"before {name}")
            answer = call(*args, **more)
            self.pass_by(f"after {name}")
            return answer

        return watched

    def _async(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        async def watched(*args: Any, **more: Any) -> Any:
            self.pass_by(f"before {name}")
            answer = await call(*args, **more)
            self.pass_by(f"after {name}")
            return answer

        return watched


def run(folder: Path, job: Job, state: DirectoryState, server: Access, *point: str) -> tuple[int, dict[str, int]]:
    """The exit code of one run in a process of its own, and how often it came by each point; ``folder`` is for the two
    files between them."""
    setup, reached = folder / "setup.json", folder / "reached.json"
    reached.unlink(missing_ok=True)
    given = {
        "job": job.model_dump(mode="json"), "state": state.uri, "reached": str(reached), "access": asdict(server),
    }  # fmt: skip
    setup.write_text(json.dumps(given))
    command = [sys.executable, "-m", "tests.faults.victim", str(setup), *point]
    ended = subprocess.run(command, cwd=ROOT, timeout=120, check=False, stdin=subprocess.DEVNULL)
    return ended.returncode, json.loads(reached.read_text()) if reached.exists() else {}


def main(setup: dict[str, Any], killer: Killer) -> None:
    chunk.FLUSH_ROWS, chunk.FLUSH_S = 3, 0.05
    lease.RENEW_S = 0.1
    job = Job.model_validate(setup["job"])
    state = DirectoryState(Path(setup["state"]))
    access = Access.decode(setup["access"])
    killer.watch()
    run_no = ledger.last_run_no(state) + 1
    helpers.run(job, state, access, run_no)
    if job.delta.delete_removed:
        with lease.hold_lease(state, "test") as held:
            prune.prune_removed(job, state, access, access, run_no, held.token)
    finish.finish_run(job, state, run_no)
    killer.pass_by("the end")


if __name__ == "__main__":
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    doomed = Killer(sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else Killer()
    main(given, doomed)
    Path(given["reached"]).write_text(json.dumps(doomed.reached))
