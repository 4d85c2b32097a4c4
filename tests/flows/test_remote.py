"""`ferry run --on` and `ferry watch` submit a worker's run and follow it; the lease excludes other runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled

from demo.origin import Origin
from ferry.core.errors import Damaged, Fatal, FerryError, LeaseHeld, Refused, UserError
from ferry.job.model import Job
from flows.cli import remote_run
from tasks import work_pools
from tasks.job_file import merged, relative_paths
from tasks.reporting.text import exit_code_of
from tests.flows.deployed import Deployed, make_pool, worker
from tests.flows.project import Cli, Ended, Prefect, Project, serve, wait_for

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def deployed(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The deployments, another one without `wait`, and a worker that takes their runs."""
    found = Deployed(tmp_path_factory.mktemp("deployed"), cli)
    found.content["deployments"].append({**found.entry("prod"), "name": found.named("other")})
    found.write()
    found.deploy().expect(0)
    with worker(cli, found.pool, found.folder / "worker.log"):
        yield found


def flow_run(prefect_api: Prefect, run_id: str) -> dict[str, Any]:
    (found,) = prefect_api.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    return dict(found)


def newest(prefect_api: Prefect, deployed: Deployed, name: str) -> dict[str, Any] | None:
    """Returns the run of a deployment that was submitted last."""
    asked = {"deployments": {"name": {"any_": [deployed.named(name)]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
    return next(iter(prefect_api.post("flow_runs/filter", asked)), None)


def said(prefect_api: Prefect, run_id: str) -> str:
    """Returns the log lines of a run."""
    asked = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
    return "\n".join(line["message"] for line in prefect_api.post("logs/filter", asked))


def test_two_deployments_of_one_job(deployed: Deployed, project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """Beside a live run, a run without `wait` exits 3, one with `wait` waits, and no object is fetched twice."""
    rows, bodies = serve(origin, 240)  # four minutes, until the latency is taken away
    project.manifest(rows)
    project.job(manifest=str(project.folder / "products.csv"), state=str(project.state), concurrency=1)
    origin.latency_s = 1.0
    first = project.start("run", "job.yaml", "--on", deployed.named("migrate/prod"), "--set", "max_bytes=1000000")
    try:
        wait_for("the first run to move", lambda: origin.total, 60)
        first.send_signal(signal.SIGINT)
        left = project.cli.end(first, ["run", "--on"]).expect(130)
        a = newest(prefect_api, deployed, "prod")
        assert a is not None
        assert f"ferry watch {a['id']}" in left.stderr
        assert a["name"] == f"{project.name} #1"
        assert a["parameters"]["job"]["max_bytes"] == 1000000

        waiting = project.start("run", "job.yaml", "--on", deployed.named("migrate/nightly"), "--json")
        refused = project.ferry("run", "job.yaml", "--on", deployed.named("migrate/other"), "--json").expect(3)
        assert f"another run of this job is running: {project.name}" in refused.json["message"]
        wait_for("the nightly to be submitted", lambda: newest(prefect_api, deployed, "nightly"))
        b = newest(prefect_api, deployed, "nightly")
        assert b is not None
        wait_for(
            "it to say for whom it waits", lambda: "waiting for another run of this job" in said(prefect_api, b["id"])
        )
        assert flow_run(prefect_api, a["id"])["state_type"] == "RUNNING", "Ctrl-C left it running"
    finally:
        origin.latency_s = 0.0
    follower = project.ferry("watch", "job.yaml").expect(0)
    assert "Completed" in follower.stdout
    second: Ended = project.cli.end(waiting, ["run"]).expect(0)
    assert "nothing to do" in second.json["message"]
    assert (
        project.ferry("watch", a["id"], "--json")
        .expect(0)
        .json["message"]
        .startswith("Completed. This run: 240 copied")
    )
    assert project.stored() == bodies
    assert set(origin.bodies.values()) == {1}
    runs = [flow_run(prefect_api, one["id"]) for one in (a, b)]
    lines = [said(prefect_api, run["id"]) for run in runs]
    assert "rows, " in lines[0], "its progress can be followed"


def test_what_is_refused_before_it_is_submitted(deployed: Deployed, project: Project, prefect_api: Prefect) -> None:
    """A wrong deployment or setting exits 2 and creates no run."""
    on = deployed.named("migrate/prod")
    for arguments, words in (
        (
            ["job.yaml", "--on", deployed.named("migrate/prodd")],
            f"has no deployment {deployed.named('migrate/prodd')}",
        ),
        (["job.yaml", "--on", deployed.named("verify/weekly")], "a deployment of the flow `migrate`"),
        (["job.yaml", "--on", on, "--set", "limits.concurency=3"], "did you mean `concurrency`?"),
        (["job.yaml", "--on", on, "--replan"], "--replan cannot be combined with --on"),
        (["job.yaml", "--on", on, "--limit", "0"], "--limit 0: it must be at least 1"),
        ([], "name a job file"),
    ):
        assert words in project.ferry("run", *arguments).expect(2).stderr
    for wanted, words in (
        (str(uuid4()), "the Prefect server has no run"),
        ("nobody", "has no run of nobody"),
        ("a/b", "is not an existing job file, nor a deployment"),
    ):
        assert words in project.ferry("watch", wanted).expect(2).stderr
    assert newest(prefect_api, deployed, "weekly") is None


@pytest.fixture
def client(prefect_api: Prefect) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: f"{prefect_api.url}/api"}), get_client(sync_client=True) as found:
        yield found


def container_deployment(prefect_api: Prefect) -> str:
    """A deployment on a pool for containers, without an online worker."""
    mark = uuid4().hex[:8]
    make_pool(prefect_api, f"pool-{mark}", "kubernetes")
    flow = prefect_api.post("flows/", {"name": "migrate"})["id"]
    made = {"name": f"far-{mark}", "flow_id": flow, "work_pool_name": f"pool-{mark}"}
    prefect_api.post("deployments/", made)
    return f"migrate/far-{mark}"


def test_relative_paths_of_a_submitted_job(
    prefect_api: Prefect, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path gives a warning, or an error for runs with their own file system; a wait is explained."""
    on = container_deployment(prefect_api)
    job = {"name": "far", "manifest": "list.csv", "destination": "s3://x/y/"}
    with pytest.raises(UserError, match="manifest and state of the job: a local path"):
        remote_run.submit(client, on, job, (), {}, print)
    run = remote_run.submit(client, on, job, ("manifest=s3://x/list.csv", "state=s3://x/state"), {"limit": 3}, print)
    assert run.parameters == {
        "job": {**job, "destination": {"uri": "s3://x/y/"}, "manifest": "s3://x/list.csv", "state": "s3://x/state"},
        "limit": 3,
    }
    heard: list[str] = []

    class Seen(Exception):
        pass

    def hear(hint: str) -> None:
        heard.append(hint)
        raise Seen

    clock = iter(range(0, 10_000, 30))
    follower = remote_run.RunFollower(client, run.id, heard.append, lambda _: None, hear)
    with pytest.raises(Seen):
        follower.until_end(clock=lambda: float(next(clock)), sleep=lambda _: None)
    assert "prefect worker start --pool pool-" in heard[-1]
    client.create_flow_run_from_deployment(
        UUID(str(run.deployment_id)), parameters=run.parameters, state=Scheduled(scheduled_time=NOW.replace(year=2100))
    )
    monkeypatch.setattr(remote_run, "PAGE", 1)  # of the hundred that a schedule plans, none is come back to
    for wanted in (on, run.name, str(run.id)):
        assert remote_run.find_run(client, wanted, None, datetime.now(UTC)).id == run.id


@pytest.mark.parametrize(
    ("data", "settings", "expected"),
    [
        ({"checks": "image"}, ["checks=decode"], {"checks": "decode"}),
        (
            {},
            ["limits.concurrency=8", "limits.requests_per_s=0.5"],
            {"limits": {"concurrency": 8, "requests_per_s": 0.5}},
        ),
        ({"destination": "s3://a/"}, ["destination.region=x"], {"destination": {"uri": "s3://a/", "region": "x"}}),
        ({"state": "x"}, ["state="], {"state": None}),
        ({}, ["limits.hosts={a.b: {concurrency: 2}}"], {"limits": {"hosts": {"a.b": {"concurrency": 2}}}}),
        ({}, ["key={sku}=x"], None),
        ({}, ["checks"], None),
        ({}, ["a..b=1"], None),
        ({"name": "x"}, ["name.y=1"], None),
        ({}, ["include=[a"], None),
    ],
)
def test_settings_in_place_of_the_jobs(data: dict[str, Any], settings: list[str], expected: Any) -> None:
    """merged() follows its table and does not change its input."""
    before = json.dumps(data)
    if expected is None:
        with pytest.raises(UserError, match="--set "):
            merged(data, settings)
    else:
        assert merged(data, settings) == expected
    assert json.dumps(data) == before


def test_settings_of_a_run_here(project: Project, origin: Origin) -> None:
    """--set changes the job of a local run, and the result is validated."""
    rows, _ = serve(origin, 1)
    project.manifest(rows)
    project.ferry("run", "job.yaml", "--set", "destination.cache_control=no-store").expect(0)
    head = project.client().head_object(Bucket=project.bucket, Key=f"{project.prefix}images/p0000.jpg")
    assert head["CacheControl"] == "no-store"
    assert "job.yaml with --set is not a valid job" in project.ferry("run", "job.yaml", "--set", "x=1").expect(2).stderr


@pytest.mark.parametrize(
    ("kind", "message", "code"),
    [
        (StateType.COMPLETED, "Completed. This run: 3 copied", 0),
        (StateType.CANCELLED, None, 130),
        (StateType.FAILED, "UserError: no list", 2),
        (StateType.FAILED, "LeaseHeld: another run", 3),
        (StateType.FAILED, "Failed: 3 rows failed", 1),
        (StateType.FAILED, "Fatal: the bucket is gone", 1),
        (StateType.CRASHED, None, 1),
    ],
)
def test_exit_codes(kind: StateType, message: str | None, code: int) -> None:
    """exit_code_for() follows its table."""
    run = FlowRun(flow_id=uuid4(), state=State(type=kind, message=message))
    assert remote_run.exit_code_for(run)[0] == code


@pytest.mark.parametrize(
    ("error", "code"), [(UserError, 2), (LeaseHeld, 3), (Fatal, 1), (Refused, 1), (Damaged, 2), (FerryError, 1)]
)
def test_an_error_s_way_to_the_exit_code(error: type[FerryError], code: int) -> None:
    """The flow writes the error's kind into its state's message, and a command reads it there."""
    from flows.migrate import failure_message

    raised = Refused("why", "403") if error is Refused else error("why")
    assert exit_code_of(completed=False, message=failure_message(raised)) == (code, "why")


def at(hours: float, kind: StateType, name: str = "") -> FlowRun:
    due = {"expected_start_time": NOW + timedelta(hours=hours)}
    return FlowRun.model_validate(
        {"flow_id": uuid4(), "name": name, "state": State(type=kind), "state_type": kind, **due}
    )


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], None),
        ([(-3, StateType.COMPLETED), (-5, StateType.RUNNING), (-1, StateType.FAILED)], 1),
        ([(-3, StateType.COMPLETED), (-1, StateType.FAILED)], 1),
        ([(12, StateType.SCHEDULED), (-3, StateType.COMPLETED)], 1),
        ([(12, StateType.SCHEDULED)], None),
        ([(-0.1, StateType.SCHEDULED), (-3, StateType.RUNNING)], 0),
    ],
)
def test_which_run_is_come_back_to(runs: list[tuple[float, StateType]], expected: int | None) -> None:
    """The newest live or due run is followed, else the last ended one; never a later scheduled run."""
    made = [at(*run) for run in runs]
    assert remote_run.newest_run(made, NOW) is (None if expected is None else made[expected])


@pytest.mark.parametrize(
    ("state", "pool", "exists", "paused", "online", "words"),
    [
        ("AwaitingConcurrencySlot", "p", True, False, [], "another run of its deployment"),
        ("Late", None, False, False, [], "has no work pool"),
        ("Late", "p", False, False, [], "the work pool `p` does not exist"),
        ("Late", "p", True, True, ["w"], "prefect work-pool resume p"),
        ("Late", "p", True, False, [], "prefect worker start --pool p"),
        ("Pending", "p", True, False, ["w"], None),
    ],
)
def test_why_a_run_has_not_begun(
    state: str, pool: str | None, exists: bool, paused: bool, online: list[str], words: str | None
) -> None:
    """why_waiting() follows its table."""
    found = work_pools.why_waiting(state, pool, exists, paused, online)
    assert found is None if words is None else words in (found or "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"manifest": "x.csv"}, ["manifest", "state"]),
        ({"manifest": "/srv/x.csv", "state": ".ferry/x"}, ["state"]),
        ({"manifest": "s3://a/x.csv", "state": "s3://b/x"}, []),
        ({"manifest": "~/x.csv", "state": "/srv/x"}, ["manifest"]),
    ],
)
def test_which_settings_are_relative(given: dict[str, str], expected: list[str]) -> None:
    """Relative paths of manifest and state are named, also for the default state."""
    assert relative_paths(Job.model_validate({"name": "x", "destination": "s3://b/", **given})) == expected


def test_the_commands_are_listed(cli: Cli, tmp_path: Path) -> None:
    """`ferry --help` lists the commands."""
    text = cli.run(["--help"], tmp_path).expect(0).stdout
    assert "deploy" in text
    assert "watch" in text
