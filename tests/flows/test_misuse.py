"""What people do by mistake: nothing of theirs is lost, and the message says what to do."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from demo.origin import Origin
from tests.flows.conftest import TRACEBACK, Project, serve

pytestmark = pytest.mark.slow


def test_export_replaces_nothing_unasked(project: Project, origin: Origin) -> None:
    """The manifest and the job are never written over, other files only with --overwrite."""
    rows, _ = serve(origin, 3)
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    before = (project.folder / "products.csv").read_bytes()
    for more in ((), ("--overwrite",)):
        assert "own file" in project.ferry("export", "job.yaml", "products.csv", *more).expect(2).stderr
    assert (project.folder / "products.csv").read_bytes() == before
    (project.folder / "map.csv").write_text("mine")
    assert "exists already" in project.ferry("export", "job.yaml", "map.csv").expect(2).stderr
    assert (project.folder / "map.csv").read_text() == "mine"
    project.ferry("export", "job.yaml", "map.csv", "--overwrite").expect(0)
    assert len((project.folder / "map.csv").read_text().splitlines()) == 4
    (project.folder / "folder.csv").mkdir()
    project.ferry("export", "job.yaml", "folder.csv", "--overwrite").expect(2)


def test_several_wait(project: Project, origin: Origin) -> None:
    """Of several runs with --wait each gets its turn: none is refused because another waiter was quicker."""
    rows, bodies = serve(origin, 20)
    project.manifest(rows)
    origin.latency_s = 0.2
    waiters = [project.start("run", "job.yaml", "--wait", "--json") for _ in range(3)]
    ended = [project.cli.end(process, ("run", "--wait")) for process in waiters]
    assert [end.code for end in ended] == [0, 0, 0], [end.stderr for end in ended]
    assert sum(origin.requests[f"/{name}"] for name in bodies) == 20
    assert project.stored() == bodies


def test_a_reader_that_has_seen_enough(project: Project, origin: Origin) -> None:
    """A closed pipe (`| head`) is no error and prints no traceback."""
    rows, _ = serve(origin, 2)
    missing = [{"sku": f"m{n}", "url": origin.url(f"/gone/{'x' * 200}{n}.jpg")} for n in range(500)]
    project.manifest([*rows, *missing])
    project.ferry("run", "job.yaml").expect(0)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "failures", "job.yaml", "--format", "csv"], cwd=project.folder,
        env=project.cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("id,source")
    process.stdout.close()
    assert process.wait(30) == 0
    shown = process.stderr.read()
    assert TRACEBACK not in shown
    assert "BrokenPipe" not in shown


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"destination": {"uri": "s3://some-bucket/", "endpoint_url": "127.0.0.1:9000"}}, "destination.endpoint_url"),
        ({"destination": {"uri": "s3://some-bucket/", "endpoint_url": ""}}, "destination.endpoint_url"),
        ({"failure_budget": True}, "failure_budget"),
        ({"include": ["*.jpg"]}, "include and exclude are for manifests that are listed"),
        ({"state": ""}, "state"),
        ({"source": {"roots": ["old/images"]}}, "old/images"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(project: Project, settings: dict[str, object], said: str) -> None:
    """A setting that cannot work is refused by its name before anything starts, with exit code 2."""
    project.job(**settings)
    assert said in project.ferry("plan", "job.yaml").expect(2).stderr


def test_ports_and_limits(project: Project, origin: Origin) -> None:
    """A port that is taken or none at all, a job that is not there and a negative limit are said plainly."""
    rows, _ = serve(origin, 2)
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    project.ferry("failures", "job.yaml", "--limit", "-1").expect(2)
    assert "no job file" in project.ferry("ui", "nothere.yaml").expect(2).stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in project.ferry("ui", "job.yaml", "--port", port).expect(2).stderr
    project.ferry("ui", "job.yaml", "--port", "80800").expect(2)


def test_a_place_onto_itself(project: Project) -> None:
    """A listed manifest that is the destination itself is refused."""
    uri = f"s3://{project.bucket}/"
    endpoint = project.cli.s3.endpoint_url
    project.job(manifest=uri, source={"endpoint_url": endpoint}, destination={"uri": uri, "endpoint_url": endpoint})
    assert "the same place" in project.ferry("plan", "job.yaml").expect(2).stderr
