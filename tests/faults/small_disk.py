"""Runs of the engine's on a small disk of their own: `python -m tests.faults.small_disk SETUP.json`, inside
`unshare --mount`. The disk fills up or turns read-only, then it is mended, and the job runs once more.

Prints a JSON line: what the first run said, what was recorded then, and the accounts at the end.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ferry.core.errors import FerryError
from ferry.core.records import Status
from ferry.job.model import Job
from ferry.planning.errors import from_planning
from ferry.reconcile.finish import finish_run
from ferry.state import ledger
from ferry.state.files import DirectoryState
from ferry.storage.access import Access
from ferry.transfer import chunk
from tests.support import helpers

SIZE_KB = 2048


def main(setup: dict[str, Any]) -> dict[str, Any]:
    """The first run has a process of its own: where the disk took no more, its lease could not be given back."""
    disk = Path(setup["disk"])
    mount(disk, f"size={SIZE_KB}k")
    chunk.FLUSH_ROWS, chunk.FLUSH_S = 2, 0.02
    job, access = Job.model_validate(setup["job"]), Access.decode(setup["access"])
    state = DirectoryState(disk / "state")
    filler = disk / "filler"
    if setup["fault"] == "full":
        filler.write_bytes(bytes((SIZE_KB - setup["left_kb"]) * 1024))
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        said = pool.submit(first_run, job, state, access, setup.get("after_files")).result()
    if setup["fault"] == "full":
        filler.unlink()
    elif said:
        mount(disk, "remount,rw")
    recorded = [outcome.key for outcome in helpers.latest(state).values() if outcome.status is Status.COPIED]
    print(json.dumps({"said": said, "recorded": recorded}), flush=True)
    sys.stdin.readline()  # until the test has looked at the origin
    run_no = ledger.last_run_no(state) + 1
    helpers.run(job, state, access, run_no)
    unfinished = [str(path.name) for path in state.root.rglob(".part-*")]
    return {"counts": finish_run(job, state, run_no)["counts"], "unfinished": unfinished}


def first_run(job: Job, state: DirectoryState, access: Access, read_only_after: int | None) -> str:
    """What it said at its end; nothing, where it was through before the disk was full."""
    if read_only_after is not None:
        _read_only(state.root.parent, read_only_after)
    try:
        helpers.run(job, state, access, 1)
        finish_run(job, state, 1)
    except Exception as error:
        known = error if isinstance(error, FerryError) else from_planning(error, state.uri)
        if known is None:
            raise
        return f"{type(known).__name__}: {known}"
    return ""


def mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


def _read_only(disk: Path, after_files: int) -> None:
    """From the next file of outcomes on, once there are so many: nobody writes one while the disk changes."""
    append, lock = ledger.append_outcomes, threading.Lock()
    done = itertools.count()

    def then_no_more(*given: Any) -> str:
        with lock:
            if next(done) == after_files:
                _remount(disk)
            return append(*given)

    for module, name in helpers.bindings(ledger.append_outcomes):
        setattr(module, name, then_no_more)


def _remount(disk: Path) -> None:
    """Another file that is open for writing, the lease's, keeps the disk writable for a moment."""
    for _ in range(200):
        ended = subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True, check=False)
        if ended.returncode == 0:
            return
        time.sleep(0.01)
    raise RuntimeError(f"the disk stays writable: {ended.stderr.decode()}")


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), flush=True)
