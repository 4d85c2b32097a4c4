"""Common mistakes lose no data, and their messages say what to do."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from tests.flows.project import QUICK, TRACEBACK, Cli, Environment, Project, serve

pytestmark = pytest.mark.slow


def test_export_replaces_nothing_unasked(project: Project, origin: Origin) -> None:
    """`export` never overwrites the manifest or the job, and other files only with --overwrite."""
    rows, _ = serve(origin, 3)
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    before = (project.folder / "products.csv").read_bytes()
    for more in ((), ("--overwrite",)):
        assert "job file or its manifest" in project.ferry("export", "job.yaml", "products.csv", *more).expect(2).stderr
    assert (project.folder / "products.csv").read_bytes() == before
    (project.folder / "map.csv").write_text("mine")
    assert "already exists" in project.ferry("export", "job.yaml", "map.csv").expect(2).stderr
    assert (project.folder / "map.csv").read_text() == "mine"
    project.ferry("export", "job.yaml", "map.csv", "--overwrite").expect(0)
    assert len((project.folder / "map.csv").read_text().splitlines()) == 4
    (project.folder / "folder.csv").mkdir()
    project.ferry("export", "job.yaml", "folder.csv", "--overwrite").expect(2)


def test_several_wait(project: Project, origin: Origin) -> None:
    """Several runs with --wait each get the lease in turn."""
    rows, bodies = serve(origin, 20)
    project.manifest(rows)
    origin.latency_s = 0.2
    waiters = [project.fork("run", "job.yaml", "--wait", "--json") for _ in range(3)]
    ended = [project.cli.end(process, ("run", "--wait")) for process in waiters]
    assert [end.code for end in ended] == [0, 0, 0], [end.stderr for end in ended]
    assert sum(origin.requests[f"/{name}"] for name in bodies) == 20
    assert project.stored() == bodies


def test_a_reader_that_has_seen_enough(project: Project, origin: Origin) -> None:
    """A closed pipe (`| head`) is not an error and prints no traceback."""
    rows, _ = serve(origin, 2)
    missing = [{"sku": f"m{n}", "url": origin.url(f"/gone/{'x' * 200}{n}.jpg")} for n in range(500)]
    project.manifest([*rows, *missing])
    project.ferry("run", "job.yaml").expect(0)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "failures", "job.yaml", "--format", "csv"], cwd=project.folder,
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
        ({"include": ["*.jpg"]}, "with the `/` at the end"),
        ({"state": ""}, "state"),
        ({"source": {"roots": ["old/images"]}}, "old/images"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(project: Project, settings: dict[str, object], said: str) -> None:
    """A setting that cannot work exits 2 with its name, before anything starts."""
    project.job(**settings)
    assert said in project.ferry("plan", "job.yaml").expect(2).stderr


def test_ports_and_limits(project: Project, origin: Origin) -> None:
    """An unusable port, a missing job and a negative limit give a clear message."""
    rows, _ = serve(origin, 2)
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    project.ferry("failures", "job.yaml", "--limit", "-1").expect(2)
    assert "does not exist" in project.ferry("ui", "nothere.yaml").expect(2).stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in project.ferry("ui", "job.yaml", "--port", port).expect(2).stderr
    project.ferry("ui", "job.yaml", "--port", "80800").expect(2)


def test_a_place_onto_itself(project: Project) -> None:
    """A listed manifest that is also the destination is refused."""
    uri = f"s3://{project.bucket}/"
    endpoint = project.cli.s3.endpoint_url
    project.job(manifest=uri, source={"endpoint_url": endpoint}, destination={"uri": uri, "endpoint_url": endpoint})
    assert "the same location" in project.ferry("plan", "job.yaml").expect(2).stderr


def test_a_name_that_is_not_text(project: Project) -> None:
    """A file whose name is not UTF-8 is a failed row; the directory's other files are copied."""
    folder = project.folder / "old"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(make_image("jpeg", 1))
    bad = os.fsencode(folder) + b"/b\xffd.jpg"
    Path(os.fsdecode(bad)).write_bytes(make_image("jpeg", 2))
    project.job(manifest=f"file://{folder}/")
    project.ferry("run", "job.yaml").expect(0)
    assert set(project.stored()) == {"good.jpg"}
    listed = project.ferry("failures", "job.yaml", "--json").expect(0).json
    assert [line["key"] for line in listed["failures"]] == [r"b\xffd.jpg"]


def test_the_map_has_every_id(project: Project, origin: Origin) -> None:
    """Two products with one picture are both in the map, and a further pass does not count twice."""
    rows, _ = serve(origin, 2)
    cut = origin.add("/cut.jpg", make_image("jpeg", 9), "image/jpeg", Fault(Trouble.TRUNCATED_LENGTH))
    project.manifest([*rows, {**rows[0], "sku": "twin"}, {"sku": "cut", "url": cut}])
    project.job(retries={**QUICK, "passes": 2})
    end = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert end["this_run"] == {"copied": 2, "skipped": 1, "failed": 1}
    project.ferry("export", "job.yaml", "map.csv").expect(0)
    lines = list(csv.DictReader((project.folder / "map.csv").open()))
    keys = {line["id"]: line["key"] for line in lines}
    assert keys["twin"] == keys[rows[0]["sku"]] == "images/p0000.jpg"
    assert len(lines) == 3


def test_verify_names_what_is_wrong(project: Project, origin: Origin) -> None:
    """A missing and an altered object are named, on the terminal and in JSON."""
    rows, _ = serve(origin, 4)
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    client = project.client()
    client.delete_object(Bucket=project.bucket, Key=project.prefix + "images/p0001.jpg")
    client.put_object(Bucket=project.bucket, Key=project.prefix + "images/p0002.jpg", Body=b"other")
    text = project.ferry("verify", "job.yaml").expect(1).stdout
    assert "missing  images/p0001.jpg" in text
    assert "altered  images/p0002.jpg" in text
    wrong = project.ferry("verify", "job.yaml", "--json").expect(1).json["wrong"]
    assert [(line["error_class"], line["key"]) for line in wrong] == [
        ("missing", "images/p0001.jpg"),
        ("altered", "images/p0002.jpg"),
    ], "it stays wrong until a run has repaired it"
    project.ferry("run", "job.yaml").expect(0)
    project.ferry("verify", "job.yaml").expect(0)


@pytest.mark.slow
def test_completion_for_a_shell(project: Project) -> None:
    """`ferry --install-completion` writes what bash loads; it completes the names of commands and options."""
    home: Environment = {"HOME": str(project.folder), "SHELL": "/bin/bash"}
    Cli.end(project.cli.start(["--install-completion"], project.folder, home), ("--install-completion",)).expect(0)
    (script,) = [path for path in project.folder.rglob("ferry") if path.is_file()]
    asked = f"source {script}; COMP_WORDS=(ferry fail); COMP_CWORD=1; _ferry; echo ${{COMPREPLY[@]}}"
    found = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=30, check=True)
    assert found.stdout.split() == ["failures"]
