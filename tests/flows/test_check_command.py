"""`ferry check` as a user runs it: its verdicts and exit codes, and the comparison at the end of the run."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from demo.origin import Fault, Origin, Trouble
from tests.flows.project import Project, serve, wait_for

pytestmark = pytest.mark.slow


def test_ready_and_then_the_run(project: Project, origin: Origin) -> None:
    """A check leaves no object and no plan, and the run that follows is compared with it."""
    rows, bodies = serve(origin, 30)
    project.manifest(rows)
    checked = project.ferry("check", "job.yaml").expect(0)
    first, *lines = checked.stdout.splitlines()
    assert first.startswith("Ready: 30 rows, about ")
    text = "\n".join(lines)
    assert "30 rows: 30 to do, 0 done" in text
    assert "sample: 30 rows: 30 copied to a prefix of its own" in text
    assert "of 30 keys of the sample, none is taken" in text
    assert "conditional writes: yes" in text
    assert "prediction for 30 rows" in text
    assert "copying a sample of 30 rows" in checked.stderr
    assert project.stored() == {}
    assert not (project.state / "plan").exists()
    ran = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert project.stored() == bodies
    low, high = ran["predicted"]
    assert 0 < low < high
    assert "Predicted 0:0" in ran["message"]
    assert ", took 0:0" in ran["message"]
    nothing = project.ferry("check", "job.yaml").expect(0).stdout
    assert nothing.startswith("Ready: there is nothing to do")
    again = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert again["predicted"] is None


def test_more_would_fail_than_allowed(project: Project, origin: Origin) -> None:
    rows, bodies = serve(origin, 20)
    for path in list(bodies)[:5]:
        origin.add(f"/{path}", b"", fault=Fault(Trouble.NOT_FOUND))
    project.manifest(rows)
    project.job(failure_budget="1%")
    ended = project.ferry("check", "job.yaml", "--json").expect(1)
    found = ended.json
    assert found["exit_code"] == 1
    assert found["verdict"] == "Not ready: about 5 of 20 rows would fail, more than the 1 that failure_budget allows"
    (failure,) = found["failures"]
    assert (failure["error_class"], failure["sampled"]) == ("not_found", 5)
    assert "5  not found (404) at 127.0.0.1" in project.ferry("check", "job.yaml").expect(1).stdout
    assert project.stored() == {}


def test_what_cannot_be_used(project: Project, origin: Origin) -> None:
    """Blocked addresses, a wrong bucket and a wrong job end with 2, without a request to the origin."""
    rows, _ = serve(origin, 3)
    project.manifest(rows)
    project.job(source={})
    blocked = project.ferry("check", "job.yaml").expect(2)
    assert "Not ready: no row of the sample could be copied" in blocked.stdout
    assert "source.allow_private_addresses" in blocked.stdout
    project.job(destination={**project.destination(), "uri": "s3://no-such-bucket-here/p/"})
    assert "does not exist" in project.ferry("check", "job.yaml").expect(2).stderr
    assert "between 1 and 100,000" in project.ferry("check", "job.yaml", "--sample", "0").expect(2).stderr
    (project.folder / "job.yaml").write_text("nam: x\n")
    assert "did you mean `name`?" in project.ferry("check", "job.yaml").expect(2).stderr
    assert origin.total == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_deletes_its_objects(number: signal.Signals, project: Project, origin: Origin) -> None:
    rows, _ = serve(origin, 60)
    origin.latency_s = 1.0
    project.job(concurrency=2)
    project.manifest(rows)
    process = project.start("check", "job.yaml")
    wait_for("copied objects", lambda: len(project.written_at()) >= 4, 60)
    os.kill(process.pid, number)
    code = wait_end(process)
    assert code == 128 + number
    assert project.stored() == {}


def test_a_signal_does_not_keep_a_check_from_tidying_up(project: Project, origin: Origin) -> None:
    rows, _ = serve(origin, 60)
    project.manifest(rows)
    process = project.start("check", "job.yaml")
    assert process.stderr is not None
    for line in process.stderr:
        if "deleting what was written" in line:
            os.kill(process.pid, signal.SIGINT)
            break
    assert wait_end(process) in (0, 130)
    assert project.stored() == {}


def wait_end(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode
