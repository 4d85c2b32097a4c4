"""Rows of a host without a DNS name or an answer wait, while other hosts' rows are copied."""

from __future__ import annotations

from typing import Any

import pytest

from demo.origin import Origin
from demo.ports import free_ports
from tests.flows.project import Cli, Ended, Prefect, Project, serve

pytestmark = pytest.mark.slow

# A resolver of our own: `img.example` is this machine, but for a while after so many look-ups.
# Nobody else is asked for it: nothing leaves this machine.
RESOLVER = """
import os, socket, time
from ferry.http.address_filter import Resolved, SystemResolver
from ferry.ratelimit import circuit_breaker
circuit_breaker.SILENT_S = float(os.environ.get("SILENT_S", circuit_breaker.SILENT_S))
first, seconds = FIRST, SECONDS
ask, asked = SystemResolver.resolve, []
async def resolve(self, host, port=0):
    if host != "img.example":
        return await ask(self, host, port)
    asked.append(time.monotonic())
    if len(asked) > first and time.monotonic() < asked[first] + seconds:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return [Resolved(host="127.0.0.1", port=port, family=socket.AF_INET)]
SystemResolver.resolve = resolve
"""


def run(project: Project, first: int, seconds: float, **env: str) -> Ended:
    resolver = RESOLVER.replace("FIRST", str(first)).replace("SECONDS", str(seconds))
    return Cli.end(project.fork("run", "job.yaml", "--json", env=env, first=resolver), ("run",))


def list_of_two_hosts(project: Project, origin: Origin, **retries: Any) -> dict[str, bytes]:
    """Write a manifest, in which every other host does not resolve. Returns the expected objects."""
    rows, bodies = serve(origin, 80)
    for row in rows[::2]:
        row["url"] = row["url"].replace("127.0.0.1", "img.example")
    quick = {"attempts": 2, "backoff_s": 0.2, "max_backoff_s": 1, "chunk_attempts": 0, **retries}
    project.job(retries=quick, chunk_rows=20, failure_budget=0)
    project.manifest(rows)
    return bodies


def test_a_name_that_is_unknown_for_a_whole_run(project: Project, origin: Origin) -> None:
    """Rows of an unresolvable host fail as `dns`, retryable, and the next run copies them."""
    bodies = list_of_two_hosts(project, origin, passes=1)
    report = run(project, 0, 60.0).expect(1).json
    assert report["this_run"] == {"copied": 40, "failed": 40}
    assert report["counts"]["classes"] == {"dns": 40}
    assert report["counts"]["retryable"] == 40
    assert "does not resolve" in report["failures"][0]["message"]
    again = run(project, 0, 0.0).expect(0).json
    assert again["this_run"] == {"copied": 40}
    assert project.stored() == bodies
    assert set(origin.requests.values()) == {1}


def test_a_name_that_is_unknown_for_a_part_of_a_run(project: Project, origin: Origin) -> None:
    """Rows of a host that does not resolve for two seconds are copied by the same run."""
    bodies = list_of_two_hosts(project, origin, attempts=4, backoff_s=1.0, passes=3)
    origin.latency_s = 0.05
    report = run(project, 1, 2.0).expect(0).json
    assert report["counts"]["copied"] == 80
    assert project.stored() == bodies
    assert set(origin.requests.values()) == {1}


def test_a_host_that_nobody_answers_at(project: Project, origin: Origin) -> None:
    """Rows of a host that never answers stay pending with the reason, and the next run copies them."""
    rows, bodies = serve(origin, 20)
    image = next(iter(bodies.values()))
    live = origin.base_url.rpartition("://")[2]
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    for number in range(2000):
        bodies[f"late/{number}.jpg"] = image
        url = origin.add(f"/late/{number}.jpg", image)
        rows.insert(number, {"sku": f"late-{number}", "url": url.replace(live, dead)})
    retries = {"attempts": 3, "backoff_s": 0.5, "max_backoff_s": 3, "chunk_attempts": 1, "chunk_delay_s": 0.3}
    project.job(retries={**retries, "passes": 0}, chunk_rows=500)
    project.manifest(rows)
    report = project.ferry("run", "job.yaml", "--json", within_s=60).expect(1).json
    counts = report["counts"]
    assert counts["copied"] == 20
    assert counts["pending"] + counts["failed"] == 2000
    assert counts["pending"] >= 500
    assert f"{dead} has not responded for" in report["message"]
    for row in rows:
        row["url"] = row["url"].replace(dead, live)
    project.manifest(rows)
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored_keys() == set(bodies)


def test_a_list_of_which_nothing_answers(project: Project, prefect_api: Prefect) -> None:
    """The host is named at once, in the log and on the run's page, and the run ends: no chunk waits for a retry."""
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    project.manifest([{"sku": f"{n}", "url": f"http://{dead}/{n}.jpg"} for n in range(400)])
    project.job(retries={"attempts": 9, "chunk_attempts": 4, "chunk_delay_s": 600}, chunk_rows=20)
    ended = run(project, 0, 0.0, SILENT_S="8").expect(1)
    assert f"{dead} refuses connections, retrying" in ended.stderr
    why = f"{dead} refuses connections, and has not answered any request for "
    assert why in ended.json["verdict"]
    assert ended.json["counts"]["pending"] + ended.json["counts"]["failed"] == 400
    (known,) = prefect_api.runs(project.name)
    assert why in known["state"]["message"]


def test_other_hosts_are_asked_behind_one_that_is_dead(project: Project, origin: Origin) -> None:
    """More rows of a dead host than are read ahead, in front: the rows behind them are copied by the same run."""
    rows, bodies = serve(origin, 20)
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    project.manifest([*({"sku": f"d{n}", "url": f"http://{dead}/{n}.jpg"} for n in range(25_000)), *rows])
    project.job(retries={"attempts": 9, "chunk_attempts": 4, "chunk_delay_s": 600, "passes": 1}, chunk_rows=2000)
    ended = run(project, 0, 0.0, SILENT_S="4").expect(1)
    assert ended.json["this_run"]["copied"] == 20
    assert project.stored() == bodies
    assert ended.json["counts"]["pending"] > 20_000
