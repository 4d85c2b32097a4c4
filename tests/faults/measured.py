"""Work of the engine's in a process of its own, and how much memory it took at most.

`python -m tests.faults.measured plan|move SETUP.json` prints a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from tasks.engine import store
from tasks.engine.access import Access
from tasks.engine.chunk import run_chunk
from tasks.engine.errors import ChunkIncomplete
from tasks.engine.job import Job
from tasks.engine.plan import read_plan
from tasks.engine.state import DirectoryState
from tests.engine import helpers


def main(what: str, setup: dict[str, Any]) -> dict[str, Any]:
    job, access = Job.model_validate(setup["job"]), Access.decode(setup["access"])
    state = DirectoryState(Path(setup["state"]))
    if "one_put_bytes" in setup:
        vars(store)["ONE_PUT_BYTES"] = setup["one_put_bytes"]
    if what == "plan":
        planned = helpers.plan(job, state, server=access)
        return {"rows": planned.rows, "chunks": len(planned.chunks), "peak_mb": peak_mb()}
    plan = read_plan(state)
    assert plan is not None
    with helpers.engine(job, state, access) as runtime:
        for ref in plan.chunks:
            with contextlib.suppress(ChunkIncomplete):
                run_chunk(runtime, ref)
    return {"peak_mb": peak_mb()}


def peak_mb() -> float:
    """The kernel's high-water mark of this process's memory (proc(5), VmHWM); ru_maxrss has the parent's in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))))
