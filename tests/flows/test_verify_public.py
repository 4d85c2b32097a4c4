"""`ferry verify --public` asks a server that stands for a CDN, prints what differs, and exits 1."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator

import pytest

from demo.images import make_image
from demo.origin import Origin
from tests.flows.project import Cli, Project, serve, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def cdn() -> Iterator[Origin]:
    with Origin() as server:
        yield server


def test_a_cdn_before_the_cutover(project: Project, origin: Origin, cdn: Origin) -> None:
    """All right is exit 0. One address that is not there and one other image are exit 1, in groups, and rows in a file;
    the ledger and `ferry verify` are as before."""
    rows, bodies = serve(origin, 12)
    project.manifest(rows)
    project.job(public_url=f"{cdn.base_url}/{{key}}")
    project.ferry("run", "job.yaml").expect(0)
    for name, body in bodies.items():
        cdn.add(f"/{name}", body)
    said = project.ferry("verify", "job.yaml", "--public").expect(0).stdout
    assert "all 12 public addresses give what the ledger says" in said
    cdn.remove("/images/p0001.jpg")
    cdn.add("/images/p0002.jpg", make_image("webp", 1), "image/webp")
    ended = project.ferry("verify", "job.yaml", "--public").expect(1)
    for words in (
        "1  not there: 404",
        "1  other bytes: a WebP image where the ledger has a JPEG image",
        f"{cdn.base_url}/images/p0001.jpg",
        "2 of 12 public addresses give something else than the ledger says: 1 not there, 1 other bytes",
    ):
        assert words in ended.stdout, ended.text
    document = project.ferry("verify", "job.yaml", "--public", "--json").expect(1).json
    assert (document["checked"], document["differ"], document["exit_code"]) == (12, 2, 1)
    lines = list(csv.DictReader((project.state / document["rows_file"]).read_text().splitlines()))
    assert sorted(line["key"] for line in lines) == [f"images/p000{n}.jpg" for n in (1, 2)]
    project.ferry("verify", "job.yaml").expect(0)
    sampled = project.ferry("verify", "job.yaml", "--public", "--sample", "3", "--json").json
    assert sampled["checked"] == 3


def test_an_interrupted_check_leaves_nothing(project: Project, origin: Origin, cdn: Origin) -> None:
    """Ctrl-C ends the check with 130. The state has neither a report nor a part of one."""
    rows, bodies = serve(origin, 150)  # five times as many as are asked for at once: what is asked may be answered
    project.manifest(rows)
    project.job(public_url=f"{cdn.base_url}/{{key}}")
    project.ferry("run", "job.yaml").expect(0)
    for name, body in bodies.items():
        cdn.add(f"/{name}", body)
    cdn.latency_s = 5
    process = project.fork("verify", "job.yaml", "--public")
    wait_for("requests", lambda: cdn.total)
    os.kill(process.pid, signal.SIGINT)
    Cli.end(process, ("verify",)).expect(130)
    assert not (project.state / "reports" / "public").exists()
    assert not list((project.state / "spool").glob("*"))


def test_what_cannot_be_asked(project: Project, origin: Origin) -> None:
    """A job without public_url, one that never ran, pending rows: a sentence, and no file."""
    rows, _ = serve(origin, 3)
    project.manifest(rows)
    public = f"{origin.base_url}/{{key}}"
    for settings, before, arguments, words in (
        ({}, [], [], "the job has no public_url"),
        ({"public_url": public}, [], ["--list"], "leave out either --list or --public"),
        ({"public_url": public}, [], [], "nothing is planned yet"),
        ({"public_url": public}, ["run", "job.yaml", "--limit", "1"], [], "rows are pending (2)"),
    ):
        project.job(**settings)
        if before:
            project.ferry(*before)
        ended = project.ferry("verify", "job.yaml", "--public", *arguments).expect(2)
        assert words in ended.stderr, ended.text
    assert not (project.state / "reports" / "public").exists()
