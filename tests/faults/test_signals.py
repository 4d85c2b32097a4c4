"""Ctrl-C and SIGTERM at any time of a run: it ends in seconds, what moved is recorded, Prefect knows how it ended."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Fault, Origin, Trouble
from demo.s3 import S3Server
from tests.faults.amount import each, only_long
from tests.faults.flow_runs import ALONE, BOUND_S, begin, recorded_runs
from tests.flows.project import TRACEBACK, Cli, Prefect, Project, fold, processes_with, serve, wait_for

LONG_S = 600.0  # nothing that is waited for here takes so long, unless nobody ends it
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
CASES = list(product(CODES, (1, 2), ("group", "process")))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize(("number", "processes", "whom"), each(CASES, 1))
def test_in_the_middle(
    project: Project, origin: Origin, tried: Callable[..., None], number: signal.Signals, processes: int, whom: str
) -> None:
    """By a terminal (the whole group hears it) or by systemd (the process alone), with one engine process or two, and
    with a Prefect server of the run's own: that goes last, and has the run as Cancelled and every task as ended."""
    run = begin(project, origin, env=ALONE, processes=processes)
    (os.killpg if whom == "group" else os.kill)(run.process.pid, number)
    report = run.end().expect(CODES[number]).json
    assert f"interrupted by {number.name}" in report["message"]
    assert report["counts"]["pending"] > 0
    assert set(project.stored()) == run.recorded, "what was in flight at a gentle stop is recorded"
    assert not processes_with(str(project.folder))
    (known,) = recorded_runs(project)
    assert (known.state, known.message) == ("CANCELLED", report["message"])
    assert set(known.tasks) == {"COMPLETED", "CANCELLED"}  # no chunk that was interrupted is shown as Failed
    assert len(known.tasks) >= 3
    run.finish()
    tried(f"{number.name} in the middle of a run")


@only_long
@pytest.mark.parametrize("processes", [1, 2])
def test_objects_that_do_not_end(project: Project, origin: Origin, tried: Callable[..., None], processes: int) -> None:
    """What is in flight and does not end within 10 s is given up: its rows are pending, and the rest is recorded."""
    run = begin(project, origin, processes=processes)
    origin.latency_s = LONG_S
    time.sleep(1.0)  # let requests meet it: there is nothing to poll for
    os.killpg(run.process.pid, signal.SIGINT)
    report = run.end().expect(130).json
    assert report["counts"]["pending"] > 0
    assert set(project.stored()) == run.recorded
    assert not processes_with(str(project.folder))
    restart(origin)
    run.finish()
    tried("Ctrl-C with objects in flight that do not end")


def test_while_chunks_wait_for_a_retry(project: Project, origin: Origin, tried: Callable[..., None]) -> None:
    """Chunks whose host asked to be left alone wait a long time for Prefect's retry: a signal ends that at once."""
    rows, bodies = serve(origin, 40)
    for name, body in bodies.items():
        origin.add(f"/{name}", body, fault=Fault(Trouble.RATE_LIMITED, seconds=LONG_S))
    project.manifest(rows)
    project.job(chunk_rows=20, retries={"attempts": 1, "max_backoff_s": 1, "chunk_delay_s": LONG_S})
    process = project.start("run", "job.yaml", "--json")
    said = first_words(process)
    wait_for("chunks to wait for their retry", lambda: sum("Retry 1/" in line for line in said) >= 2, BOUND_S)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(BOUND_S) == 143, said
    for name in bodies:
        origin.mend(f"/{name}")
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == bodies
    tried("SIGTERM while chunks wait for a retry")


def test_while_planning(project: Project, origin: Origin, prefect_api: Prefect, tried: Callable[..., None]) -> None:
    """A list that does not come, or takes an hour to compare: planning is given up, and Prefect shows Cancelled."""
    rows, bodies = serve(origin, 5)
    text = "sku,url\n" + "".join(f"{row['sku']},{row['url']}\n" for row in rows)
    project.job(manifest=origin.add("/list.csv", text.encode(), "text/csv"))
    origin.latency_s = LONG_S
    process = project.start("run", "job.yaml", "--json")
    wait_for("the list to be asked for", lambda: origin.requests["/list.csv"], BOUND_S)
    os.killpg(process.pid, signal.SIGINT)
    ended = Cli.end(process, ("run", "job.yaml"), BOUND_S).expect(130)
    assert "nothing was copied: interrupted by SIGINT" in ended.json["error"]
    assert [run["state_type"] for run in prefect_api.runs(project.name)] == ["CANCELLED"]
    assert not processes_with(str(project.folder))
    restart(origin)
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == bodies
    tried("Ctrl-C while planning")


@only_long
@pytest.mark.parametrize("number", list(CODES))
def test_at_any_time(
    project: Project, origin: Origin, prefect_api: Prefect, tried: Callable[..., None], number: signal.Signals
) -> None:
    """At seeded moments from the first import to the last record: never a traceback, never a run left as Running."""
    rng = random.Random(f"any time {number}")
    rows, bodies = serve(origin, 60)
    project.manifest(rows)
    project.job(concurrency=2)  # three seconds of moving
    moments = [rng.uniform(0.0, 7.0) for _ in range(12)]
    for moment in moments:
        before = len(prefect_api.runs(project.name))
        shutil.rmtree(project.state, ignore_errors=True)  # it begins anew: what is there becomes `unchanged`
        origin.latency_s = 0.1
        process = project.start("run", "job.yaml", "--json")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        ended = Cli.end(process, ("run", "job.yaml"), BOUND_S)
        # before Ferry listens the system ends it
        assert ended.code in (0, CODES[number], -number), f"after {moment:.2f} s: {ended.code} {ended.text}"
        assert TRACEBACK not in ended.text, f"after {moment:.2f} s: {ended.text}"
        states = [run["state_type"] for run in prefect_api.runs(project.name)][before:]
        assert set(states) <= {"COMPLETED", "CANCELLED", "CRASHED"}, f"after {moment:.2f} s: {states}"
        assert not processes_with(str(project.folder))
    origin.latency_s = 0.0
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == bodies
    assert {outcome["status"] for outcome in fold(project.state).values()} <= {"copied", "unchanged"}
    tried(f"{number.name} at any time", len(moments))


@only_long
@pytest.mark.parametrize("number", list(CODES))
def test_a_verification(
    project: Project,
    origin: Origin,
    tmp_path: Path,
    prefect_api: Prefect,
    tried: Callable[..., None],
    number: signal.Signals,
) -> None:
    """In the middle of reading from a store that does not answer: Cancelled, at once, and the lease is given back."""
    rows, bodies = serve(origin, 40)
    project.manifest(rows)
    with S3Server(tmp_path / "s3") as s3:
        keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        s3.make_bucket(project.bucket)
        project.job(destination=project.destination(endpoint_url=s3.endpoint_url))
        project.ferry("run", "job.yaml", "--json", env=keys).expect(0)
        assert s3.pid is not None
        process = project.start("verify", "job.yaml", env=keys)
        wait_for("the verification to begin", lambda: (project.state / "lease.json").exists(), BOUND_S)
        os.kill(s3.pid, signal.SIGSTOP)
        try:
            time.sleep(1.0)
            os.killpg(process.pid, number)
            ended = Cli.end(process, ("verify", "job.yaml"), BOUND_S)
        finally:
            os.kill(s3.pid, signal.SIGCONT)
        if ended.code:  # else it was through before
            ended.expect(CODES[number])
            assert [run["state_type"] for run in prefect_api.runs(project.name, "verify")] == ["CANCELLED"]
        assert not (project.state / "lease.json").exists()
        project.ferry("verify", "job.yaml", env=keys).expect(0)
        found = s3.client().list_objects_v2(Bucket=project.bucket)["Contents"]
        assert {item["Key"].removeprefix(project.prefix) for item in found} == set(bodies)
    tried(f"{number.name} in a verification")


def first_words(process: Any) -> list[str]:
    """Lines of what it says on standard error, as they come."""
    lines: list[str] = []
    for stream in (process.stderr, process.stdout):
        threading.Thread(target=lambda s=stream: lines.extend(iter(s.readline, "")), daemon=True).start()
    return lines


def restart(origin: Origin) -> None:
    """Answers that were delayed are not waited for."""
    origin.latency_s = 0.0
    origin.down()
    origin.up()
