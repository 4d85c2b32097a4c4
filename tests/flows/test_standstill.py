"""A run without progress reports that, and ends with its rows pending."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Fault as OriginFault
from demo.origin import Origin, Trouble
from tests.flows.project import Cli, Environment, Forked, Prefect, Project, serve, wait_for
from tests.flows.test_processes import helpers
from tests.servers.odd_s3 import Fault, OddS3

pytestmark = pytest.mark.slow

# A watchdog that has less patience; tasks.workers has its own names for some of these.
LESS_PATIENCE = """
from ferry import transfer
from ferry.transfer import stall
from tasks.workers import handle, pool
for names in (transfer, stall, handle, pool):
    names.WARN_S, names.END_S, names.SILENT_WARN_S, names.SILENT_END_S = BOUNDS
"""
PATIENT = {"connect_s": 60, "read_s": 300, "total_s": 600}


def start(project: Project, *bounds: float, env: Environment = {}) -> Forked:
    first = LESS_PATIENCE.replace("BOUNDS", repr(tuple(map(float, bounds))))
    return project.fork("run", "job.yaml", "--json", env=env, first=first)


def bar(prefect_api: Prefect, project: Project) -> str:
    """Returns the text of the run's progress artifact."""
    found = prefect_api.post("artifacts/filter", {"artifacts": {"key": {"any_": [f"{project.name}-progress"]}}})
    return str(found[-1]["description"]) if found else ""


def still(project: Project) -> Any:
    path = project.state / "reports" / "hosts.json"
    return json.loads(path.read_text()).get("still") if path.exists() else ""


def test_an_origin_that_hangs(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """For three stalled bodies, log, artifact and status name the host; the run ends, the next one copies them."""
    rows, bodies = serve(origin, 10)
    stalled = [
        origin.add(f"/stalled/{n}.jpg", b"\xff\xd8\xff" * 9999, fault=OriginFault(Trouble.STALL)) for n in range(3)
    ]
    host = origin.base_url.rpartition("://")[2]
    project.manifest([*rows, *({"sku": url, "url": url} for url in stalled)])
    project.job(timeouts=PATIENT, failure_budget=0)
    process = start(project, 2, 12, 15, 60)
    words = f"3 rows wait for a response from {host}"
    wait_for("the state to say so", lambda: words in still(project), 60)
    assert words in project.ferry("status", "job.yaml").expect(0).stdout
    wait_for("the artifact to say so", lambda: words in bar(prefect_api, project), 20)
    ended = Cli.end(process, ("run",)).expect(1)
    report = ended.json
    assert report["counts"]["copied"] == 10
    assert report["counts"]["pending"] == 3
    assert f"no row has finished for 0:12: {words}" in report["message"]
    assert words in ended.stderr  # the log
    assert project.stored() == bodies


@pytest.fixture
def silent() -> Iterator[OddS3]:
    """A store that answers everything except PUTs of objects."""
    with OddS3(faults=[Fault("silence", ("PutObject",), key="products/")]) as server:
        server.make_bucket("silent")
        yield server


def test_a_store_that_goes_silent(project: Project, origin: Origin, silent: OddS3) -> None:
    """The message names the request that the store did not answer."""
    rows, _ = serve(origin, 5)
    project.manifest(rows)
    destination = {"uri": "s3://silent/products/", "endpoint_url": silent.endpoint_url}
    project.job(timeouts=PATIENT, destination=destination, failure_budget=0)
    env = {"AWS_ACCESS_KEY_ID": silent.access_key, "AWS_SECRET_ACCESS_KEY": silent.secret_key}
    report = Cli.end(start(project, 2, 4, 15, 60, env=env), ("run",)).expect(1).json
    assert report["counts"]["pending"] == 5
    assert "rows wait for the destination's response to PUT" in report["message"]


def test_a_large_object_that_comes_slowly(project: Project, origin: Origin) -> None:
    """A run whose bytes move is not ended, although no row gets an outcome."""
    body = b"P5 1000 1000 255\n" + bytes(1_000_000)
    url = origin.add("/slow.pgm", body, fault=OriginFault(Trouble.SLOW, seconds=12))
    project.manifest([{"sku": "slow", "url": url}])
    project.job(timeouts=PATIENT)
    ended = Cli.end(start(project, 2, 5, 15, 60), ("run",)).expect(0)
    assert ended.json["this_run"] == {"copied": 1}
    assert "1 row waits for a response from" in ended.stderr


def test_a_pause_that_a_host_asked_for(project: Project, origin: Origin) -> None:
    """A long Retry-After is not a standstill."""
    rows, bodies = serve(origin, 3)
    origin.add("/images/p0000.jpg", bodies["images/p0000.jpg"], fault=OriginFault(Trouble.RATE_LIMITED, seconds=9))
    project.manifest(rows)
    project.job(concurrency=1, retries={"attempts": 3, "backoff_s": 0.1, "max_backoff_s": 30})
    ended = Cli.end(start(project, 2, 4, 15, 60), ("run",)).expect(0)
    assert ended.json["this_run"] == {"copied": 3}
    assert "no row has finished" not in ended.text


def test_an_engine_process_that_is_stopped(project: Project, origin: Origin) -> None:
    """A silent engine process (SIGSTOP) is named and killed, and the same run copies its rows."""
    rows, bodies = serve(origin, 160)
    origin.latency_s = 0.25
    project.job(processes=2, concurrency=8, chunk_rows=10)
    project.manifest(rows)
    process = start(project, 120, 600, 2, 6)
    wait_for("recorded rows", lambda: len(project.stored_keys()) >= 30 or process.poll() is not None, 60)
    (helper,) = helpers(process.pid)
    os.kill(helper, signal.SIGSTOP)
    origin.latency_s = 0.0
    began = time.monotonic()
    wait_for("the process to be named", lambda: "has been silent for" in still(project), 60)
    ended = Cli.end(process, ("run",)).expect(0)
    assert ended.json["counts"]["copied"] + ended.json["counts"]["unchanged"] == 160
    assert project.stored() == bodies
    assert not Path(f"/proc/{helper}").exists()
    assert time.monotonic() - began < 120
