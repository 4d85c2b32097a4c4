"""Prefect's task retries process a chunk's pending rows, and such a chunk is never cached."""

from __future__ import annotations

import shutil

import pytest

from demo.origin import Fault, Origin, Trouble
from tests.flows.project import QUICK, Prefect, Project, fold, serve, wait_for

pytestmark = pytest.mark.slow


def test_a_host_in_trouble_is_waited_for(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """Rows of a failing host stay pending, and the same run copies them after the host recovers."""
    rows, bodies = serve(origin, 120)
    for name, body in bodies.items():
        origin.add(f"/{name}", body, "image/jpeg", Fault(Trouble.SERVER_ERROR))
    project.manifest(rows)
    # Few at once, so that the circuit opens before every row has been asked for.
    project.job(
        chunk_rows=60, concurrency=4, retries={**QUICK, "attempts": 1, "chunk_attempts": 12, "chunk_delay_s": 13}
    )
    process = project.fork("run", "job.yaml", "--json")
    wait_for("the circuit to open", lambda: origin.total >= 50)
    for name in bodies:
        origin.mend(f"/{name}")
    asked = origin.total
    assert asked < 120
    assert process.wait(120) in (0, 1), process.communicate()
    run = prefect_api.runs(project.name)[-1]
    states = prefect_api.chunk_states(run)
    assert states == ["Completed"] * len(states), states
    counts = project.ferry("status", "job.yaml", "--json").expect(0).json
    assert counts["pending"] == 0
    assert counts["copied"] + counts["failed"] == 120
    assert counts["copied"] >= 60, "rows of the paused host were left pending, and done later"
    assert len(project.stored_keys()) == counts["copied"]


def test_pending_rows_are_not_cached(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A chunk without retries left is Failed, not cached, and the next run copies its pending rows."""
    rows, bodies = serve(origin, 90)
    for name, body in bodies.items():
        origin.add(f"/{name}", body, "image/jpeg", Fault(Trouble.FORBIDDEN))
    project.manifest(rows)
    project.job(chunk_rows=90, retries={**QUICK, "chunk_attempts": 0})
    project.ferry("run", "job.yaml", "--json").expect(1)
    first = project.ferry("status", "job.yaml", "--json").expect(0).json
    assert first["pending"] > 0
    assert first["pending"] + first["failed"] == 90
    assert prefect_api.chunk_states(prefect_api.runs(project.name)[-1]) == ["Failed"]
    for name in bodies:
        origin.mend(f"/{name}")
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.ferry("status", "job.yaml", "--json").expect(0).json["copied"] == 90
    assert project.stored() == bodies


@pytest.mark.parametrize("lost", [("ledger", "reports"), ("ledger", "reports", "plan", "chunks")])
def test_a_result_without_its_outcomes_counts_for_nothing(
    lost: tuple[str, ...], project: Project, origin: Origin, prefect_api: Prefect
) -> None:
    """Rows of a Cached chunk that the ledger lacks are checked again by the same run."""
    rows, bodies = serve(origin, 30)
    project.manifest(rows)
    project.job()
    project.ferry("run", "job.yaml", "--json").expect(0)
    for name in lost:
        shutil.rmtree(project.state / name)
    for key in list(bodies)[:3]:
        project.client().delete_object(Bucket=project.bucket, Key=project.prefix + key)
    report = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert "Cached" in prefect_api.chunk_states(prefect_api.runs(project.name)[-1])
    assert report["this_run"] == {"copied": 3, "unchanged": 27}
    assert report["counts"]["pending"] == 0
    assert len(fold(project.state)) == 30
    assert project.stored() == bodies
