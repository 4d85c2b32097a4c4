"""An error in a job, a manifest, a destination or the state is found before the transfer, with a clear message."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.ports import free_ports
from tests.flows.project import Cli, Ended, Project, fold, serve, wait_for


@dataclass(slots=True)
class Laid:
    """A case's folder, and the servers that it may use."""

    project: Project
    origin: Origin
    rows: list[dict[str, str]]
    env: dict[str, str | None] = field(default_factory=dict)

    def text(self, text: str | bytes, name: str = "products.csv", **settings: Any) -> None:
        """Write a manifest as given, and a job for it."""
        data = text.encode() if isinstance(text, str) else text
        (self.project.folder / name).write_bytes(data)
        self.project.job(manifest=name, **settings)

    @property
    def csv(self) -> str:
        return "sku,url\n" + "".join(f"{row['sku']},{row['url']}\n" for row in self.rows)


@dataclass(frozen=True, slots=True)
class Case:
    """How to create the error, and the parts of its message: what is wrong, where, and what to do."""

    lay: Callable[[Laid], object]
    said: tuple[str, ...]
    command: str = "plan"  # `run` says the same of a list, and takes twice as long to start


def _stray_quote(at: Laid) -> None:
    lines = [f"{n},{at.origin.url(f'/{n}.jpg')}" for n in range(2, 50_001)]
    lines[39_998] = f'40000,"{at.origin.url("/40000.jpg")}'
    at.text("\n".join(["sku,url", *lines]) + "\n")


def _long_line(at: Laid) -> None:
    at.text(at.csv + "long," + "x" * 10_000_000 + "\n" + at.csv.partition("\n")[2])


def _closed_port(at: Laid) -> None:
    (port,) = free_ports(1)
    at.text(at.csv, destination={"uri": "s3://some-bucket/", "endpoint_url": f"http://127.0.0.1:{port}"})


def _reader(at: Laid) -> None:
    at.text(at.csv)
    s3 = at.project.cli.s3
    at.env = {"AWS_ACCESS_KEY_ID": s3.reader_key, "AWS_SECRET_ACCESS_KEY": s3.reader_secret}


def _wrong_key(at: Laid) -> None:
    at.text(at.csv)
    at.env = {"AWS_SECRET_ACCESS_KEY": "not-the-secret-key"}


def _no_key(at: Laid) -> None:
    at.text(at.csv)
    at.env = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}


def _newer(at: Laid) -> None:
    at.text(at.csv)
    plan = at.project.state / "plan" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(json.dumps({"ferry_schema": 99, "something": "new"}))


def _damaged(at: Laid) -> None:
    at.text(at.csv)
    plan = at.project.state / "plan" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text('{"ferry_schema": 1, "chunks": [')


def _state_is_a_file(at: Laid) -> None:
    (at.project.folder / "taken").write_text("a file")
    at.text(at.csv, state="taken")


CASES: dict[str, Case] = {
    "no list": Case(lambda at: at.project.job(), ("products.csv does not exist",), "run"),
    "a list of no bytes": Case(lambda at: at.text(""), ("products.csv is empty",), "run"),
    "a list of a header": Case(lambda at: at.text("sku,url\n"), ("products.csv contains no rows",)),
    "a page for a list": Case(
        lambda at: at.text("<!DOCTYPE html><html>Sign in</html>"), ("products.csv ends in .csv, but is an HTML page",)
    ),
    "a csv called parquet": Case(
        lambda at: at.text(at.csv, "list.parquet"), ("list.parquet ends in .parquet, but is plain text", ".csv")
    ),
    "a gzip called csv": Case(lambda at: at.text(gzip.compress(at.csv.encode())), ("but is gzip", ".csv.gz")),
    "an ending nobody knows": Case(lambda at: at.text(at.csv, "list.cvs"), (".cvs", "did you mean .csv?")),
    "Latin-1": Case(
        lambda at: at.text(at.csv.encode() + "süß,http://127.0.0.1/ü.jpg\n".encode("latin-1")),
        ("products.csv is not UTF-8: line 5", "0xfc", "iconv"),
        "run",
    ),
    "half a UTF-16": Case(lambda at: at.text(at.csv.encode("utf-16")[:-1]), ("UTF-16", "line")),
    "no source column": Case(
        lambda at: at.text("sku,colour\n1,red\n"),
        ("no column is recognised as the source", "`sku`, `colour`", "columns:"),
    ),
    "a column that is not there": Case(
        lambda at: at.text(at.csv, columns={"source": "ulr"}), ("has no column `ulr`", "did you mean `url`?")
    ),
    "a column twice": Case(lambda at: at.text("sku,url,url\n1,a,b\n"), ("more than one column named `url`",)),
    "two sources": Case(
        lambda at: at.text("sku,url,image\n1,a,b\n"), ("`url` and `image` could each be the source", "columns:")
    ),
    "a template with an unknown column": Case(
        lambda at: at.text(at.csv, key="{skuu}.jpg"), ("skuu", "did you mean", "sku"), "run"
    ),
    "a template with an open brace": Case(lambda at: at.text(at.csv, key="{sku.jpg"), ("brace",)),
    "a source.url with an unknown column": Case(
        lambda at: at.text("sku\n1\n", source={"url": "http://127.0.0.1/{sk}.jpg"}), ("{sk}", "sku")
    ),
    "a stray quote in row 40,000": Case(
        _stray_quote,
        ("products.csv, line 40000", "a quote opens and is not closed", "40000,", "bad_lines: skip"),
        "run",
    ),
    "too many fields": Case(
        lambda at: at.text(at.csv + "4,http://127.0.0.1/4.jpg,what\n"), ("line 5", "3 fields where the header has 2")
    ),
    "a line of 10 MB": Case(_long_line, ("products.csv, line 5", "longer than 1 MiB", "bad_lines: skip"), "run"),
    "no row of use": Case(
        lambda at: at.text("url\none\ntwo\n"), ("no row of the manifest can be used", "is not a URL")
    ),
    "a bucket that is not there": Case(
        lambda at: at.text(at.csv, destination={**at.project.destination(), "uri": "s3://no-such-bucket/x/"}),
        ("destination bucket `no-such-bucket`", "does not exist"),
        "run",
    ),
    "read-only credentials": Case(_reader, ("refuses writing with these credentials", "credentials"), "run"),
    "wrong credentials": Case(_wrong_key, ("destination bucket", "refuses access with these credentials"), "run"),
    "no credentials": Case(_no_key, ("no AWS credentials were found", "AWS_ACCESS_KEY_ID"), "run"),
    "a profile nobody has": Case(
        lambda at: at.text(at.csv, destination=at.project.destination(credentials="profile:nobody")),
        ("`nobody`",),
        "run",
    ),
    "a block nobody saved": Case(
        lambda at: at.text(at.csv, destination=at.project.destination(credentials="block:nobody")),
        ("destination.credentials", "`nobody`"),
        "run",
    ),
    "an endpoint where nobody listens": Case(_closed_port, ("cannot be reached", "endpoint_url"), "run"),
    "an unknown job key": Case(
        lambda at: at.text(at.csv, destinaton="s3://x/y/"),
        ("unknown key `destinaton`", "did you mean `destination`?"),
        "run",
    ),
    "an unknown key further down": Case(
        lambda at: at.text(at.csv, retries={"atempts": 3}), ("retries", "unknown key `atempts`", "`attempts`")
    ),
    "a value out of range": Case(lambda at: at.text(at.csv, retries={"attempts": 0}), ("retries.attempts", "1")),
    "a budget that is none": Case(lambda at: at.text(at.csv, failure_budget="some"), ("failure_budget", "`1%`")),
    "a destination that is none": Case(
        lambda at: at.text(at.csv, destination="new-bucket/products"), ("destination", "s3://bucket/prefix/")
    ),
    "a signature in the manifest": Case(
        lambda at: at.project.job(manifest="https://127.0.0.1/list.csv?X-Amz-Signature=abc"), ("manifest", "signature")
    ),
    "an allowed host that is none": Case(
        lambda at: at.text(at.csv, source={"allow_private_addresses": ["http://img.internal/"]}),
        ("allow_private_addresses", "img.internal"),
        "run",
    ),
    "a state of a newer version": Case(_newer, ("plan.json", "newer"), "run"),
    "a damaged state": Case(_damaged, ("plan.json", "damaged", "--replan")),
    "a state that is a file": Case(_state_is_a_file, ("state", "taken"), "run"),
}


@pytest.fixture(scope="module")
def ended(
    request: pytest.FixtureRequest, cli: Cli, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[tuple[Laid, Ended]]]]:
    """Run the commands of the selected cases, two at a time."""
    wanted = {
        item.callspec.params.get("name")
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }
    bucket = f"bad-input-{secrets.token_hex(4)}"
    cli.s3.make_bucket(bucket)

    def one(name: str) -> tuple[Laid, Ended]:
        folder = tmp_path_factory.mktemp("bad")
        with Origin() as origin:
            at = Laid(Project(folder, cli, bucket), origin, serve(origin, 3)[0])
            CASES[name].lay(at)
            return at, at.project.ferry(CASES[name].command, "job.yaml", env=at.env)

    with ThreadPoolExecutor(1) as pool:
        yield {name: pool.submit(one, name) for name in CASES if name in wanted}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, ended: Mapping[str, Future[tuple[Laid, Ended]]]) -> None:
    """The exit code is 2, the message says what, where and what to do, and nothing was fetched or written."""
    at, command = ended[name].result()
    case = CASES[name]
    command.expect(2)
    message = command.stderr[command.stderr.rindex("error: ") :]  # the last lines are the user's, the log stands above
    for part in case.said:
        assert part in " ".join(message.split()), message
    assert len(message) < 1200, message
    assert at.origin.total == 0
    assert at.project.client().list_objects_v2(Bucket=at.project.bucket)["KeyCount"] == 0
    assert not fold(at.project.state)
    assert not (at.project.state / "lease.json").exists()


@pytest.mark.slow
def test_lists_that_look_odd_and_are_fine(project: Project, origin: Origin) -> None:
    """UTF-16 with a mark, semicolons, CRLF, no final newline, `sep=` and quoted line breaks are read."""
    rows, bodies = serve(origin, 3)
    text = "sep=;\r\nSKU;Image URL;note\r\n" + "\r\n".join(f'{r["sku"]};{r["url"]};"a ""b""\nc; d"' for r in rows)
    (project.folder / "products.csv").write_bytes(text.encode("utf-16"))
    report = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert report["counts"]["copied"] == 3
    assert project.stored() == bodies
    assert set(project.ledger()) == {row["sku"] for row in rows}


@pytest.mark.slow
def test_bad_lines_can_be_skipped(project: Project, origin: Origin) -> None:
    """With `bad_lines: skip`, a long line and one with too many fields are outcomes, the rest is copied."""
    rows, bodies = serve(origin, 3)
    lines = ["sku,url", *(f"{row['sku']},{row['url']}" for row in rows)]
    lines.insert(2, "long," + "y" * 10_000_000)
    lines.insert(4, "a,b,c")
    (project.folder / "products.csv").write_text("\n".join(lines) + "\n")
    project.job(bad_lines="skip")
    counts = project.ferry("run", "job.yaml", "--json").expect(0).json["counts"]
    assert (counts["planned"], counts["copied"], counts["classes"]) == (5, 3, {"bad_line": 2})
    assert project.stored() == bodies
    messages = sorted(str(o["message"]) for o in fold(project.state).values() if o["status"] == "failed")
    assert [message.partition(":")[0] for message in messages] == ["line 3", "line 5"]
    assert max(map(len, messages)) < 300


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB. Skips if this user may not mount one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a tmpfs, and not in every container")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


@pytest.mark.slow
def test_full_state_disk(project: Project, origin: Origin, tiny_disk: Path) -> None:
    """A full state disk stops the run with a message; after space is freed, the job resumes."""
    rows, bodies = serve(origin, 30)
    project.manifest(rows)
    project.job(state=str(tiny_disk / "state"))
    filler = tiny_disk / "filler"
    filler.write_bytes(b"x" * 380_000)
    refused = project.ferry("run", "job.yaml")
    assert refused.code in (1, 2), refused.text
    refused.expect(refused.code)
    assert "no space left" in refused.stderr.lower()
    assert str(tiny_disk) in refused.stderr
    assert set(project.stored()) <= set(bodies)
    filler.unlink()
    report = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert report["counts"]["copied"] + report["counts"]["unchanged"] == 30
    assert project.stored() == bodies


@pytest.mark.slow
def test_disk_that_fills_up_on_the_way(project: Project, origin: Origin, tiny_disk: Path) -> None:
    """A state disk that fills up during a run leaves rows pending, and a rerun accounts for all rows."""
    rows, bodies = serve(origin, 400)
    origin.latency_s = 0.1
    project.manifest(rows)
    project.job(state=str(tiny_disk / "state"), concurrency=4, chunk_rows=100)
    process = project.fork("run", "job.yaml", "--json")
    state = tiny_disk / "state"
    wait_for("recorded rows", lambda: len(fold(state)) >= 8 or process.poll() is not None)
    assert process.poll() is None
    filler = (tiny_disk / "filler").open("wb", buffering=0)
    with filler:
        try:
            while True:
                filler.write(b"x" * 4096)
        except OSError:
            pass
    ended = Cli.end(process, ("run", "job.yaml"))
    assert ended.code == 1, ended.text
    assert "no space left" in ended.text.lower()
    (tiny_disk / "filler").unlink()
    origin.latency_s = 0.0
    status = project.ferry("status", "job.yaml", "--json").expect(0).json
    assert status["failed"] == 0
    assert status["pending"] > 0
    report = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert report["counts"]["copied"] + report["counts"]["unchanged"] == report["counts"]["planned"] == 400
    assert project.stored() == bodies


@pytest.mark.slow
def test_changed_settings(project: Project, origin: Origin) -> None:
    """A changed setting that decides where rows come from or go to exits 2 and is named; others may change."""
    url = origin.add("/a.jpg", make_image("jpeg", 1))
    project.manifest([{"sku": "a", "url": url, "other": url}])
    project.ferry("run", "job.yaml").expect(0)
    asked, written = origin.total, project.written_at()
    allowed = {"allow_private_addresses": ["127.0.0.1"]}
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("run", "`columns`", {"columns": {"source": "other"}}),
        ("plan", "`source.url`", {"source": {"url": "http://127.0.0.1/{sku}.jpg", **allowed}}),
        ("plan", "`destination.uri`", {"destination": project.destination(uri=f"s3://{project.bucket}/new/")}),
    ]
    for command, named, change in changes:
        project.job(**change)
        message = project.ferry(command, "job.yaml").expect(2).stderr
        assert f"{named} changed" in message
        assert "--replan" in message
        assert (origin.total, project.written_at()) == (asked, written)
    project.job(concurrency=3, timeouts={"read_s": 9}, source={"user_agent": "another", **allowed})
    project.ferry("run", "job.yaml").expect(0)
    assert (origin.total, project.written_at()) == (asked, written)


@pytest.mark.slow
def test_a_server_that_is_not_there(project: Project) -> None:
    """The error for an unreachable PREFECT_API_URL names the address, without a traceback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
        project.manifest([{"sku": "a", "url": "http://127.0.0.1/a.jpg"}])
        ended = project.ferry("run", "job.yaml", env={"PREFECT_API_URL": url}, within_s=90)
    ended.expect(2)
    assert "PREFECT_API_URL" in ended.stderr
    assert url in ended.stderr
