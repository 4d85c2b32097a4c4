"""The command with a list that has two addresses of each image: plan, a killed run and its rerun, failures, map."""

from __future__ import annotations

import csv
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from demo.images import make_image
from demo.origin import Origin, Trouble
from tests.flows.project import Cli, Project, fold, wait_for

pytestmark = pytest.mark.slow

ROWS = 150


@pytest.fixture
def cdn() -> Iterator[Origin]:
    with Origin() as server:
        yield server


def shop(project: Project, origin: Origin, cdn: Origin) -> dict[str, bytes]:
    """Every third image is at the first address, every third at the second, and every third at none."""
    rows, bodies = [], {}
    for n in range(ROWS):
        path, body = f"/{n:03d}.jpg", make_image("jpeg", n, 40, 30)
        for at, server in enumerate((origin, cdn)):
            server.add(path, body, fault=None if n % 3 == at else Trouble.NOT_FOUND)
        if n % 3 < 2:
            bodies[path[1:]] = body
        rows.append({"sku": f"{n:03d}", "url": origin.url(path), "cdn_url": cdn.url(path)})
    project.manifest(rows)
    project.job(columns={"source": ["url", "cdn_url"]}, concurrency=6, chunk_rows=40)
    return bodies


def asked(origin: Origin, cdn: Origin) -> Counter[str]:
    """Returns the requests to both since the last call, by path."""
    found = origin.requests + cdn.requests
    origin.requests, cdn.requests = Counter(), Counter()
    return found


def test_a_killed_run_and_its_rerun(project: Project, origin: Origin, cdn: Origin) -> None:
    """A rerun takes exactly the rows without an outcome, each from its first address on, and the next does nothing."""
    bodies = shop(project, origin, cdn)
    text = project.ferry("plan", "job.yaml").expect(0).stdout
    assert f"source = url, then cdn_url (such as {origin.base_url}/000.jpg)" in text
    assert f"hosts: 127.0.0.1:{origin.port} (150 rows)" in text
    limited = project.ferry("run", "job.yaml", "--limit", "6", "--json").expect(0).json
    assert limited["this_run"] == {"copied": 4, "failed": 2}
    origin.latency_s = cdn.latency_s = 0.5
    process = project.fork("run", "job.yaml", "--json")
    wait_for("recorded rows", lambda: len(fold(project.state)) >= 30 or process.poll() is not None)
    assert process.poll() is None, Cli.end(process, ("run",)).text
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    Cli.end(process, ("run",), 20)
    recorded = {line["key"] for line in fold(project.state).values()}
    assert 30 <= len(recorded) < ROWS
    origin.latency_s = cdn.latency_s = 0.0
    asked(origin, cdn)
    report = project.ferry("run", "job.yaml", "--json").expect(0).json
    counts = report["counts"]
    assert (counts["copied"] + counts["unchanged"], counts["failed"], counts["pending"]) == (100, 50, 0)
    again = asked(origin, cdn)
    assert again == {f"/{n:03d}.jpg": 1 + (n % 3 > 0) for n in range(ROWS) if f"{n:03d}.jpg" not in recorded}
    assert project.stored() == bodies
    for n, line in project.ledger().items():
        expected = cdn.url(f"/{n}.jpg") if int(n) % 3 == 1 else None
        assert (line["source"], line["address"]) == (origin.url(f"/{n}.jpg"), expected)
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert not asked(origin, cdn)
    failed = project.ferry("failures", "job.yaml", "--json").expect(0).json
    assert (failed["total"], {row["error_class"] for row in failed["failures"]}) == (50, {"not_found"})
    assert failed["failures"][0]["message"] == (
        f"the origin has no such object (HTTP 404); 2 addresses were tried, also {cdn.url('/002.jpg')} (not_found)"
    )
    project.ferry("export", "job.yaml", "map.csv").expect(0)
    with (project.folder / "map.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 100
    assert {line["address"] for line in lines if int(line["id"]) % 3 == 0} == {""}
    assert all(line["address"] == cdn.url(f"/{line['id']}.jpg") for line in lines if int(line["id"]) % 3)
    project.ferry("verify", "job.yaml").expect(0)
