"""An operator's view of a run: its page at Prefect, its log and its metrics.

All tests use one run with 31 chunks, some faulty rows, and an origin that is slow enough to observe it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from demo.origin import Origin
from demo.s3 import S3Server
from ferry.core.progress import Snapshot
from ferry.job.model import Job
from flows import migrate
from flows.server.local import free_port
from tasks.reporting.text import percent
from tasks.reporting.ui import slug
from tests.flows.project import Cli, Ended, Prefect, Project, serve, wait_for
from tests.flows.test_metrics import scrape
from tests.support.helpers import make_job

pytestmark = pytest.mark.slow
GOOD, BAD, CHUNK_ROWS = 300, 7, 10


@dataclass
class Seen:
    """What was observed during the run, and its records afterwards."""

    project: Project
    ended: Ended
    run: dict[str, Any]
    artifacts: dict[str, dict[str, Any]]
    notes: list[dict[str, Any]]
    bars: list[float] = field(default_factory=list)
    metrics: dict[tuple[str, str], float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def seen(cli: Cli, s3: S3Server, prefect_api: Prefect, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    bucket = f"page-{secrets.token_hex(6)}"
    s3.make_bucket(bucket)
    project, port = Project(tmp_path_factory.mktemp("page"), cli, bucket), free_port()
    with Origin() as origin:
        rows, _ = serve(origin, GOOD)
        rows += [{"sku": f"gone-{n}", "url": origin.url(f"/gone/{n}.jpg")} for n in range(BAD)]
        origin.latency_s = 0.3
        project.job(chunk_rows=CHUNK_ROWS, concurrency=20, processes=2)
        project.manifest(rows)
        process = project.start("run", "job.yaml", env={"FERRY_LOG_FORMAT": "json", "FERRY_METRICS": str(port)})
        bars: list[float] = []
        metrics: dict[tuple[str, str], float] = {}

        def look() -> bool:
            nonlocal metrics
            with_key = {"artifacts": {"key": {"any_": [slug(project.name) + "-progress"]}}}
            for artifact in prefect_api.post("artifacts/filter", with_key):
                if not bars or bars[-1] != float(artifact["data"]):
                    bars.append(float(artifact["data"]))
            with contextlib.suppress(OSError, http.client.HTTPException):  # not yet, or not any more
                metrics = scrape(port)
            return process.poll() is not None

        wait_for("the run's end", look, 90, 0.1)
        ended = Cli.end(process, ("run",)).expect(0)
    (run,) = prefect_api.runs(project.name)
    look()
    mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    artifacts = {a["key"]: a for a in prefect_api.post("artifacts/filter", mine) if a["key"]}
    tasks = [task["id"] for task in prefect_api.post("task_runs/filter", mine)]
    notes = prefect_api.post("artifacts/filter", {"artifacts": {"task_run_id": {"any_": tasks}}})
    return Seen(project, ended, run, artifacts, [n for n in notes if not n["key"]], bars, metrics)


def test_the_bar_moves_and_ends_at_100(seen: Seen) -> None:
    """The bar starts at 0, moves during the run, and ends at 100."""
    assert seen.bars[0] == 0
    assert seen.bars[-1] == 100
    assert len(seen.bars) > 2, seen.bars
    assert seen.bars == sorted(seen.bars)
    assert f"{GOOD + BAD:,} of {GOOD + BAD:,} rows" in seen.artifacts[f"{seen.project.name}-progress"]["description"]


def test_the_run_is_named_and_tagged(seen: Seen) -> None:
    """The run has its number, and the tags `ferry`, its job and its mode."""
    assert seen.run["name"] == f"{seen.project.name} #1"
    assert seen.run["tags"] == ["ferry", "full", seen.project.name]


def test_summary_and_failures_say_what_and_what_next(seen: Seen) -> None:
    """The summary has the counts, the failures' artifact and the retry command; the table has each failure."""
    summary, failures = (seen.artifacts[f"{seen.project.name}-{what}"] for what in ("summary", "failures"))
    assert f"| copied | uploaded and confirmed | {GOOD} |" in summary["data"]
    assert f"`{seen.project.name}-failures`" in summary["data"]
    assert "`ferry run JOB.yaml --retry-failed`" in summary["data"]
    table = json.loads(failures["data"])
    assert {line["id"] for line in table} == {f"gone-{n}" for n in range(BAD)}
    assert list(table[0])[:3] == ["id", "error_class", "message"]
    assert failures["description"] == f"{BAD} failed rows"


def test_the_report_is_linked(seen: Seen) -> None:
    """The run's page links its report, which is in the state."""
    path = seen.project.state / "reports" / "run-000001" / "report.html"
    assert f"]({path.as_uri()})" in seen.artifacts[f"{seen.project.name}-report"]["data"]
    assert f"{GOOD:,} of {GOOD + BAD:,} rows are stored, {BAD} failed" in path.read_text()
    summary = json.loads(path.with_name("summary.json").read_text())
    assert summary["seconds"] > 0
    assert summary["bytes"] > 0
    again = seen.project.ferry("report", "job.yaml", "--out", "report.html")
    assert (again.code, (seen.project.folder / "report.html").stat().st_mode & 0o777) == (0, 0o600)


def test_a_report_that_cannot_be_written_fails_no_run(project: Project, origin: Origin) -> None:
    """A warning names it; the objects have moved. Before the first run `ferry report` has nothing to say."""
    rows, _ = serve(origin, 2)
    project.manifest(rows)
    early = project.ferry("report", "job.yaml", "--out", "report.html")
    assert (early.code, "nothing is planned yet" in early.stderr, (project.folder / "report.html").exists()) == (
        2,
        True,
        False,
    )
    (project.state / "reports" / "run-000001" / "report.html").mkdir(parents=True)
    ended = project.ferry("run", "job.yaml")
    assert (ended.code, "the report was not written" in ended.text) == (0, True)
    assert project.ferry("report", "job.yaml").code == 0
    assert "2 of 2 rows are stored" in (project.state / "reports" / "report.html").read_text()
    for out, said in (("x" * 300, "File name too long"), (project.state / "plan" / "plan.json", "is in the state")):
        refused = project.ferry("report", "job.yaml", "--overwrite", "--out", str(out))
        assert (refused.code, said in refused.stderr, "Traceback" in refused.stderr) == (2, True, False)


def test_a_chunk_leads_to_its_file_and_its_rows(seen: Seen, prefect_api: Prefect) -> None:
    """A chunk's line links to its task run and has its file; the task run has the command for its rows."""
    table = json.loads(seen.artifacts[f"{seen.project.name}-chunks"]["data"])
    assert len(table) == 31
    assert sum(line["failed"] for line in table) == BAD
    assert sum(line["copied"] for line in table) == GOOD
    assert "pending" not in table[0]  # a column with nothing in it
    assert table == sorted(table, key=lambda line: -line["failed"])
    tasks = {
        t["id"]: t["name"]
        for t in prefect_api.post("task_runs/filter", {"flow_runs": {"id": {"any_": [seen.run["id"]]}}})
    }
    for line in table:
        short, _, task = line["chunk"].removeprefix("[").removesuffix(")").partition("](/runs/task-run/")
        assert re.fullmatch(rf"chunk-\d+-of-31-{short}", tasks[task])
    troubled = [line for line in table if line["failed"]]
    assert len(seen.notes) == len(troubled)
    for note in seen.notes:
        assert f"--chunk {tasks[note['task_run_id']].split('-')[4]}" in note["data"]
        assert note["flow_run_id"] is None  # or it would stand among the run's own
    name = tasks[seen.notes[0]["task_run_id"]]
    listed = seen.project.ferry("failures", "job.yaml", "--chunk", name, "--json").expect(0).json
    wanted = next(line["failed"] for line in troubled if name.split("-")[4] in line["chunk"])
    assert listed["total"] == wanted
    assert (
        "no failed rows with chunk 0000"
        in seen.project.ferry("failures", "job.yaml", "--chunk", "0000").expect(0).stdout
    )


def test_the_log_is_short_and_says_whose_lines_it_has(seen: Seen, prefect_api: Prefect) -> None:
    """A run of 31 chunks logs about a dozen lines, each JSON with the run's ID."""
    lines = [json.loads(line) for line in seen.ended.stderr.splitlines()]
    assert {line["flow_run_id"] for line in lines} == {seen.run["id"]}
    assert {line["job"] for line in lines if line.get("run_no")} == {seen.project.name}
    assert any(f" of {GOOD + BAD} rows" in line["message"] for line in lines)
    assert 5 <= len(lines) <= 15
    kept = {"logs": {"flow_run_id": {"any_": [seen.run["id"]]}}}
    assert len(prefect_api.post("logs/filter", kept)) <= len(lines)


def test_metrics_say_what_the_ledger_says(seen: Seen) -> None:
    """The last scraped metrics equal the ledger's counts, over both engine processes."""
    assert seen.metrics["ferry_engine_processes", ""] == 2
    ledger = seen.project.ledger().values()
    assert seen.metrics["ferry_objects_total", "copied"] == sum(line["status"] == "copied" for line in ledger) == GOOD
    assert seen.metrics["ferry_failures_total", "not_found"] == BAD
    assert seen.metrics["ferry_bytes_total", ""] == sum(line["size"] or 0 for line in ledger)
    assert seen.metrics["ferry_rows_left", ""] == 0
    of_hosts = {host: number for (name, host), number in seen.metrics.items() if name == "ferry_host_requests_total"}
    assert of_hosts["destination"] >= GOOD
    assert max(number for host, number in of_hosts.items() if host != "destination") >= GOOD + BAD


@pytest.mark.parametrize(
    ("flow", "mode", "retry", "wanted"),
    [
        ("migrate", "full", False, "test"), ("migrate", "full", True, "test (retry failed)"),
        ("migrate", "delta", ["timeout"], "test (retry failed)"), ("migrate", "delta", False, "test (delta 20"),
        ("verify", "delta", False, "test (verify)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", ["a job", "its parameters"])
def test_names_of_runs(
    flow: str, mode: str, retry: bool | list[str], wanted: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of delta runs have a date, and those of verifications and retries say so."""
    job: Job = make_job(mode=mode)
    parameters = {"job": job if given == "a job" else job.model_dump(mode="json"), "retry_failed": retry}
    monkeypatch.setattr(migrate, "flow_run", SimpleNamespace(parameters=parameters, flow_name=flow))
    assert migrate.run_name().startswith(wanted)


@pytest.mark.parametrize(
    ("todo", "done", "over", "wanted"),
    [(0, 0, False, 0), (0, 0, True, 100), (200, 50, False, 25), (200, 200, False, 99), (200, 200, True, 100),
     (100_000, 99_999, True, 99.9), (200, 50, True, 25)],
)  # fmt: skip
def test_percent(todo: int, done: int, over: bool, wanted: float) -> None:
    """percent() follows its table."""
    s = Snapshot(todo, done, 0, 0, 1.0, 1.0, 1.0, None, {}, {})
    assert percent(s, over=over) == wanted
