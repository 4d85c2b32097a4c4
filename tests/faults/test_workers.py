"""Runs of a deployment by real workers: two at once, a worker that is killed or stopped, a run cancelled in the UI, a
server that is away. All in `make faults`: each takes a worker of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from demo.s3 import S3Server
from flows.server.local import LocalServer
from tests.faults.amount import LONG
from tests.flows.project import fold, serve, wait_for
from tests.flows.test_deployment import Prefect
from tests.support.units import descendants

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not LONG, reason="takes minutes: `make faults`"),
]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Site:
    """A Prefect server with two deployments of the flow, `prod` as in prefect.yaml and `free` without a slot; an origin
    and a bucket; workers as they are started."""

    def __init__(self, server: LocalServer, s3: S3Server, origin: Origin, folder: Path) -> None:
        self.server, self.s3, self.origin, self.folder = server, s3, origin, folder
        self.bucket = f"test-{secrets.token_hex(6)}"
        s3.make_bucket(self.bucket)
        keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
        self.prefect = Prefect(server, {**keys, **quick, "AWS_EC2_METADATA_DISABLED": "true"})
        self.workers: list[subprocess.Popen[bytes]] = []
        self.prefect.must("work-pool", "create", "ferry", "--type", "process")
        self.prefect.must("deploy", "--all")
        prod = self.prefect.get("deployments/name/migrate/prod")
        self.deployments = {"prod": prod["id"]}
        kept = ("flow_id", "entrypoint", "pull_steps", "work_pool_name", "job_variables", "parameter_openapi_schema")
        free = self.prefect.post("deployments/", {"name": "free", **{name: prod[name] for name in kept}})
        self.deployments["free"] = free["id"]

    def work(self, count: int, latency_s: float) -> dict[str, bytes]:
        """A job of ``count`` objects that two requests at a time bring; what its destination must hold."""
        name = f"job-{secrets.token_hex(4)}"
        rows, bodies = serve(self.origin, count, name)
        listed = self.folder / f"{name}.csv"
        listed.write_text("sku,url\n" + "".join(f"{row['sku']},{row['url']}\n" for row in rows))
        self.origin.latency_s = latency_s
        self.state = self.folder / name
        self.prefix = f"{name}/"
        self.job: dict[str, Any] = {
            "name": name, "manifest": str(listed), "state": str(self.state), "chunk_rows": 10, "concurrency": 2,
            "destination": {"uri": f"s3://{self.bucket}/{self.prefix}", "endpoint_url": self.s3.endpoint_url},
            "source": {"allow_private_addresses": ["127.0.0.1"]},
        }  # fmt: skip
        return bodies

    def worker(self) -> subprocess.Popen[bytes]:
        log = self.folder / "worker.log"
        process = self.prefect.start("worker", "start", "--pool", "ferry", "--type", "process", log=log)
        self.workers.append(process)
        return process

    def worker_says(self, text: str) -> bool:
        return text in (self.folder / "worker.log").read_text()

    def submit(self, deployment: str = "prod") -> str:
        """The ID of a run that a worker will take."""
        asked = {"parameters": {"job": self.job}, "state": {"type": "SCHEDULED"}}
        return str(self.prefect.post(f"deployments/{self.deployments[deployment]}/create_flow_run", asked)["id"])

    def under_way(self, rows: int = 6) -> set[str]:
        """Waits for rows to be recorded; their keys."""
        wait_for("recorded rows", lambda: len(self.recorded) >= rows, 120)
        return self.recorded

    @property
    def recorded(self) -> set[str]:
        return {outcome["key"] for outcome in fold(self.state).values()} if self.state.exists() else set()

    def run(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = self.prefect.get(f"flow_runs/{id_}")
        return found

    def ended(self, id_: str, within_s: float = 180.0) -> tuple[str, str]:
        """State and message of a run that has ended."""
        run = wait_for(
            f"run {id_} to end", lambda: (r := self.run(id_))["state_type"] in ENDED and r, within_s, every_s=0.5
        )
        return run["state_type"], run["state"]["message"] or ""

    def check(self, bodies: dict[str, bytes]) -> None:
        """Everything is there, nothing else, and each object was asked for once: nothing recorded moved twice."""
        client = self.s3.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        stored = {
            key.removeprefix(self.prefix): client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys
        }
        assert stored == bodies

    def stop_workers(self) -> None:
        for process in self.workers:
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        self.workers.clear()


@pytest.fixture(scope="module")
def shared(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with LocalServer(folder / "prefect") as server, Origin() as origin:
        yield Site(server, s3, origin, folder)


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """No worker is left over from one test to the next."""
    yield shared
    shared.stop_workers()


def test_two_runs_through_two_workers(site: Site, tried: Callable[..., None]) -> None:
    """Of two runs of one job one moves; the other says who does, and has moved nothing."""
    bodies = site.work(40, 0.3)
    site.worker(), site.worker()
    both = [site.submit("free"), site.submit("free")]
    ends = sorted(site.ended(run) for run in both)
    assert [state for state, _ in ends] == ["COMPLETED", "FAILED"]
    assert ends[1][1].startswith("LeaseHeld: another run of this job is running: ")
    site.check(bodies)
    assert all(site.origin.requests[f"/{key}"] == 1 for key in bodies)
    tried("two runs of one job through two workers")


def test_two_runs_of_a_deployment_with_a_slot(site: Site, tried: Callable[..., None]) -> None:
    """As prefect.yaml has it the second one waits for its turn, and then finds nothing to do."""
    bodies = site.work(30, 0.2)
    site.worker(), site.worker()
    both = [site.submit(), site.submit()]
    ends = [site.ended(run) for run in both]
    assert [state for state, _ in ends] == ["COMPLETED", "COMPLETED"]
    assert sum("nothing to do" in message for _, message in ends) == 1
    site.check(bodies)
    assert all(site.origin.requests[f"/{key}"] == 1 for key in bodies)
    tried("two runs of a deployment with a slot")


def test_a_worker_that_is_killed(site: Site, tried: Callable[..., None]) -> None:
    """Alone: its run goes on by itself and is recorded as what it was."""
    bodies = site.work(40, 0.3)
    worker = site.worker()
    run = site.submit("free")
    site.under_way()
    left = descendants(worker.pid)
    worker.kill()
    worker.wait()
    try:
        assert site.ended(run)[0] == "COMPLETED"
    finally:
        kill(left)
    site.check(bodies)
    tried("SIGKILL of a worker")


def test_a_machine_that_goes_down(site: Site, tried: Callable[..., None]) -> None:
    """Worker and run are killed: the next schedule goes on, and marks the dead run; not before, and no other."""
    bodies = site.work(40, 0.3)
    worker = site.worker()
    dead = site.submit("free")
    recorded = site.under_way()
    kill([*descendants(worker.pid), worker.pid])
    worker.wait()
    assert site.run(dead)["state_type"] == "RUNNING"
    before = dict(site.origin.requests)
    site.worker()
    assert site.ended(site.submit("free"))[0] == "COMPLETED"
    state, message = site.ended(dead)
    assert state == "CRASHED"
    assert "is gone" in message
    site.check(bodies)
    assert all(site.origin.requests[f"/{key}"] == before.get(f"/{key}", 0) for key in recorded)
    tried("SIGKILL of a worker with its run")


def test_a_worker_that_is_stopped(site: Site, tried: Callable[..., None]) -> None:
    """SIGTERM to a worker kills its run: what that recorded stands, and the next run goes on and marks it. No worker
    takes the old one up again."""
    bodies = site.work(40, 0.3)
    worker = site.worker()
    run = site.submit("free")
    recorded = site.under_way()
    worker.terminate()
    worker.wait(60)
    assert site.run(run)["state_type"] == "RUNNING"
    before = dict(site.origin.requests)
    site.worker()
    assert site.ended(site.submit("free"))[0] == "COMPLETED"
    assert site.ended(run)[0] == "CRASHED"
    site.check(bodies)
    assert all(site.origin.requests[f"/{key}"] == before.get(f"/{key}", 0) for key in recorded)
    tried("SIGTERM of a worker")


def test_cancelled_in_the_ui(site: Site, tried: Callable[..., None]) -> None:
    """The run ends gently: what was in flight is recorded, its state is Cancelled, the next run goes on."""
    bodies = site.work(40, 0.3)
    site.worker()
    run = site.submit("free")
    site.under_way()
    site.prefect.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert site.ended(run)[0] == "CANCELLED"
    recorded = site.recorded
    assert len(recorded) < len(bodies)
    assert site.ended(site.submit("free"))[0] == "COMPLETED"
    site.check(bodies)
    assert all(site.origin.requests[f"/{key}"] == 1 for key in recorded)
    tried("a run cancelled in the UI")


def test_the_server_away_for_two_minutes(site: Site, tried: Callable[..., None]) -> None:
    """In a run of the deployment with its slot, beyond the time when Prefect itself would renew that: the server comes
    back without the slot's lease, and the run goes on and is Completed."""
    bodies = site.work(60, 10.0)
    site.worker()
    run = site.submit()
    site.under_way(2)
    site.server.stop()
    time.sleep(125)
    site.server.start()
    site.server.ready()
    assert site.ended(run, 600)[0] == "COMPLETED"
    site.check(bodies)
    assert all(site.origin.requests[f"/{key}"] == 1 for key in bodies)
    tried("Prefect server away for 125 s in a run of a deployment")


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
