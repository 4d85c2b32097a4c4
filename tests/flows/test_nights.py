"""Delta runs by the command delete removed copies where the job asks for it, or say why not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from demo.origin import Origin
from ferry.reconcile.prune import PruneResult
from tasks.reporting.text import prune_failure
from tests.flows.project import Cli, Project, serve

pytestmark = pytest.mark.slow

# The command, interrupted when all is deleted that may be, and before the run's accounts.
INTERRUPTED = """
import os, runpy, signal, sys, time
from tasks.run import Run
prune = Run.prune
def pruned_and_interrupted(run):
    prune(run)
    os.kill(os.getpid(), signal.SIGTERM)
    while not run.runtime.stopping:
        time.sleep(0.01)
Run.prune = pruned_and_interrupted
sys.argv = ["ferry", *sys.argv[1:]]
runpy.run_module("flows", run_name="__main__", alter_sys=True)
"""


def test_a_night_deletes_what_left_the_list(project: Project, origin: Origin) -> None:
    """A removed row's copy is deleted after two manifests; a truncated manifest exits 1 and deletes none."""
    rows, bodies = serve(origin, 30)
    project.manifest(rows)
    project.job(mode="delta", delta={"delete_removed": True, "max_delete": "10%"})
    project.ferry("run", "job.yaml").expect(0)
    gone = rows.pop(7)["url"].rpartition("/")[2]
    project.manifest(rows)
    first = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert (first["delta"]["deleted"], first["pruned"]["waiting"]) == (0, 1)
    waits = (
        "1 copy is missing from the manifest for the first time, and will be deleted if also missing from the next one"
    )
    assert waits in first["message"]
    assert project.stored() == bodies
    night = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert (night["delta"]["deleted"], night["pruned"]["file"]) == (1, "reports/run-000003/pruned.csv")
    assert "1 deleted, removed from the manifest (reports/run-000003/pruned.csv)" in night["message"]
    assert gone in (project.state / night["pruned"]["file"]).read_text()
    del bodies[f"images/{gone}"]
    assert project.stored() == bodies
    project.manifest(rows[:10])
    refused = project.ferry("run", "job.yaml").expect(1)
    said = "The manifest has 10 usable rows, and the last one had 29. If it is truncated, stop this run"
    assert refused.text.index(said) < refused.text.index("10 rows: 10 to do")
    assert "removed from the manifest: 19, 0 of them deleted" in refused.text
    assert "19 copies whose rows were removed from the manifest were not deleted: " in refused.text
    assert "the manifest has 10 rows, 29 were expected" in refused.text
    assert project.stored() == bodies


@pytest.mark.slow
def test_a_night_that_is_interrupted_counts_its_list_once(project: Project, origin: Origin) -> None:
    """The run after an interrupted delta run counts the same manifest only once."""
    rows, bodies = serve(origin, 10)
    project.manifest(rows)
    project.job(mode="delta", delta={"delete_removed": True, "max_delete": "50%"})
    project.ferry("run", "job.yaml").expect(0)
    project.manifest(rows[:-1])
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "run", "job.yaml", "--json"],
        cwd=project.folder, env=project.cli.environment, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    interrupted = Cli.end(process, ("run",)).expect(143).json
    assert interrupted["pruned"]["waiting"] == 1
    assert "interrupted by SIGTERM" in interrupted["message"]
    again = project.ferry("run", "job.yaml", "--json").expect(0).json["pruned"]
    assert (again["waiting"], again["deleted"]) == (1, 0)
    assert project.stored() == bodies
    assert project.ferry("run", "job.yaml", "--json").expect(0).json["pruned"]["deleted"] == 1


@pytest.mark.parametrize(
    ("pruned", "sentence"),
    [
        (PruneResult(1, 2, refused="why."), "1 copy whose row was removed from the manifest was not deleted: why."),
        (
            PruneResult(19, 2, refused="why."),
            "19 copies whose rows were removed from the manifest were not deleted: why.",
        ),
        (
            PruneResult(3, 2, failed=1, first_failure="a.jpg: why"),
            "1 copy could not be deleted: a.jpg: why; the next delta run tries again",
        ),
        (
            PruneResult(3, 2, failed=2, first_failure="a.jpg: why"),
            "2 copies could not be deleted, the first of them a.jpg: why; the next delta run tries again",
        ),
        (
            PruneResult(3, 2, failed=2, stop_reason="why"),
            "2 copies could not be deleted: why; the next delta run tries again",
        ),
        (PruneResult(3, 2, deleted=3), ""),
    ],
)
def test_what_is_said_of_copies_that_stand(pruned: PruneResult, sentence: str) -> None:
    """prune_failure() names the number of copies and the reason."""
    assert prune_failure(pruned) == sentence


@pytest.mark.slow
@pytest.mark.parametrize("partly", [["--limit", "100"], ["--retry-failed"]])
def test_a_run_of_a_part_deletes_nothing(partly: list[str], project: Project, origin: Origin) -> None:
    """`--limit` and `--retry-failed` delete no copy, and do not count the manifest."""
    rows, bodies = serve(origin, 10)
    project.manifest(rows)
    project.job(mode="delta", delta={"delete_removed": True, "max_delete": "50%"})
    project.ferry("run", "job.yaml").expect(0)
    project.manifest(rows[:-1])
    project.ferry("run", "job.yaml").expect(0)
    for _ in range(2):
        assert project.ferry("run", "job.yaml", *partly, "--json").expect(0).json["pruned"] is None
        assert project.stored() == bodies
    assert project.ferry("run", "job.yaml", "--json").expect(0).json["pruned"]["deleted"] == 1


@pytest.mark.slow
def test_a_list_that_cannot_be_had_fails_the_night(project: Project, origin: Origin) -> None:
    """A missing manifest exits 2 and deletes nothing; the last one is not used instead."""
    rows, bodies = serve(origin, 3)
    project.manifest(rows)
    project.job(mode="delta", delta={"delete_removed": True, "max_delete": "100%"})
    project.ferry("run", "job.yaml").expect(0)
    (project.folder / "products.csv").unlink()
    before = origin.total
    assert "does not exist" in project.ferry("run", "job.yaml").expect(2).text
    project.job(
        mode="delta", manifest="http://127.0.0.1:9/products.csv", delta={"delete_removed": True, "max_delete": "100%"}
    )
    assert "cannot be downloaded" in project.ferry("run", "job.yaml").expect(2).text
    assert project.stored() == bodies
    assert origin.total == before
