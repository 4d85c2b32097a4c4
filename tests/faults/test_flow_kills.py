"""SIGKILL of a whole run at seeded moments: one plain run ends the job, and Prefect shows the dead run as Crashed."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from demo.origin import Origin
from tests.faults.amount import some
from tests.faults.flow_runs import check
from tests.flows.project import Prefect, Project, fold, processes_with, serve, wait_for

ROWS = 30
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Process, point, and up to which time it is reached. The first ones are those of which the issue speaks.
MOMENTS = [
    ("flow", "after upload", 25),
    ("flow", "before artifacts", 1),  # the lease is given back, and Prefect has not heard of the end
    ("flow", "before result of a chunk", 3),
    ("plan", "before compaction", 1),
    ("flow", "before flush", 6),
    ("plan", "before writing chunks", 1),
    ("flow", "after result of a chunk", 3),
    ("plan", "after compaction", 1),
    ("flow", "after flush", 6),
    ("plan", "after loading the manifest", 1),
    ("flow", "before merge of a chunk's parts", 3),
    ("plan", "before rename", 3),
    ("flow", "before rename", 8),
    ("flow", "after booking a chunk", 3),
    ("plan", "after sync", 3),
    ("flow", "before lease", 3),
    ("flow", "after planning", 1),
    ("flow", "after accounts", 2),
    ("plan", "after recording problems", 1),
    ("flow", "before upload", 25),
    ("flow", "after handing out a chunk", 3),
    ("flow", "before planning", 1),
    ("flow", "after artifacts", 1),
    ("plan", "after looking for existing objects", 1),
    ("flow", "after merge of a chunk's parts", 3),
    ("flow", "after sync", 8),
    ("plan", "before finish", 1),
]


def run(project: Project, process: str, point: str, number: int) -> int:
    """The exit code of a run that is to be killed."""
    arguments = [process, point, str(number), "run", "job.yaml", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.flow_victim", *arguments], cwd=project.folder,
        env=project.cli.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return ended.returncode


def test_killed_at_any_moment(
    project: Project, origin: Origin, prefect_api: Prefect, tried: Callable[..., None]
) -> None:
    """20 kills (2 in the quick run): what was recorded stands, the next run moves the rest, and marks the dead run."""
    rng = random.Random(46)
    rows, bodies = serve(origin, ROWS)
    project.manifest(rows)
    origin.latency_s = 0.02
    killed = 0
    chosen = MOMENTS[: some(2, len(MOMENTS))]
    for process, point, most in chosen:
        number = rng.randint(1, most)
        what = f"killed in {process} {point}, time {number}"
        project.name, project.prefix = f"job-{secrets.token_hex(4)}", f"{secrets.token_hex(4)}/"
        project.job(chunk_rows=10, on_existing="overwrite", concurrency=4)
        code = run(project, process, point, number)
        assert code in (0, -signal.SIGKILL), f"{what}: exit {code}"
        wait_for("what belongs to it to go", lambda: not processes_with(str(project.folder)), 10)
        recorded = {outcome["key"] for outcome in fold(project.state).values()}
        before = dict(origin.requests)
        project.ferry("run", "job.yaml", "--json").expect(0)
        check(project, bodies, what)
        again = {path[1:] for path, count in origin.requests.items() if count > before.get(path, 0)} & recorded
        assert not again, f"{what}: {len(again)} recorded rows were fetched again"
        states = [known["state_type"] for known in prefect_api.runs(project.name)]
        assert states == ["CRASHED" if code else "COMPLETED", "COMPLETED"], what
        killed += code != 0
    assert killed >= len(chosen) * 0.8  # threads take turns otherwise each time: a number is not always reached
    tried("SIGKILL of a whole run", killed)
