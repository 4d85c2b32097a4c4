"""`limits.shared`: runs of several jobs at one Prefect server keep the limits of one provider together.

Slow: two whole runs beside each other at the low rate that an nginx allows, so most of the time is waiting; and a
Prefect server of its own, which is stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from demo.images import make_image
from ferry.ratelimit import JOIN_S, members
from flows.server.local import LocalServer
from tasks.prefect_api import required_client
from tasks.workers import shared_limits
from tasks.workers.shared_limits import BEAT, SharedLimits
from tests.flows.project import QUICK, Cli, Prefect, Project, wait_for
from tests.support.logging_nginx import LoggingNginx
from tests.support.proxies import find, missing

pytestmark = pytest.mark.slow
PER_S = 20
SOON_S = 60.0  # 5 s are promised after an end, 35 s after a kill; a busy machine may take longer
DEAD_SOON = "from ferry.ratelimit import members; members.DEAD_S = 12.0"


class Provider:
    """An nginx that allows PER_S requests per second, and what it has logged."""

    def __init__(self, nginx: LoggingNginx) -> None:
        self._nginx = nginx

    def rows(self, job: str, count: int) -> list[dict[str, str]]:
        return [
            {"sku": f"{job}-{n}", "url": f"http://127.0.0.1:{self._nginx.port}/p.jpg?{job}={n}"} for n in range(count)
        ]

    def log(self) -> list[tuple[int, str, int]]:
        """Returns second, query and status of each request."""
        lines = [json.loads(line) for line in self._nginx.log("json").read_text().splitlines()]
        return [
            (
                int(datetime.fromisoformat(line["time"]).timestamp()),
                line["request_uri"].partition("?")[2].partition("=")[0],
                line["status"],
            )
            for line in lines
        ]

    def rate(self, job: str = "", since: int = 0, until: int = 2**40, last_s: int = 0) -> float:
        """Returns the requests per second of a job, or of all; with ``last_s`` those of the last whole seconds."""
        if last_s:
            until = int(time.time())
            since = until - last_s
        hits = [at for at, who, _ in self.log() if since <= at < until and job in ("", who)]
        return len(hits) / (until - since)


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    if find("nginx") is None:
        pytest.skip(missing("nginx"))
    root = tmp_path / "www"
    root.mkdir()
    (root / "p.jpg").write_bytes(make_image("jpeg", 1, 40, 30))
    tmp_path.chmod(0o755)
    with LoggingNginx(tmp_path / "nginx", root, PER_S) as nginx:
        yield Provider(nginx)


def prepare(project: Project, provider: Provider, job: str, rows: int) -> None:
    limits = {"requests_per_s": PER_S, "shared": project.bucket}
    project.job(limits=limits, key="{sku}.jpg", chunk_rows=5000, retries={**QUICK, "attempts": 5})
    project.manifest(provider.rows(job, rows))


def test_two_jobs_keep_one_limit(project: Project, cli: Cli, prefect_api: Prefect, provider: Provider) -> None:
    """Together they reach the limit and stay at it; the one takes all when the other ends, and when it is killed."""
    (project.folder / "other").mkdir()
    other = Project(project.folder / "other", cli, project.bucket)
    other.prefix = "other/"
    prepare(project, provider, "long", 2000)
    prepare(other, provider, "short", 200)
    long = project.fork("run", "job.yaml", "--json", first=DEAD_SOON)
    wait_for("requests", lambda: provider.rate("long", last_s=4) > 0.9 * PER_S, SOON_S)

    short = other.fork("run", "job.yaml", "--json")
    wait_for("requests of the other", lambda: provider.rate("short", last_s=2) > 0, SOON_S)
    both_since = int(time.time())
    ended = Cli.end(short, ("run",)).expect(0)
    assert ended.json["counts"]["copied"] == 200
    assert "limits: 2 live runs with limits.shared" in ended.stderr
    last = max(at for at, who, _ in provider.log() if who == "short")
    assert provider.rate(since=both_since, until=last) >= 0.9 * PER_S
    for job in ("long", "short"):
        assert 0.4 * PER_S < provider.rate(job, since=both_since, until=last) < 0.6 * PER_S, job
    wait_for("all of it, after an end", lambda: provider.rate("long", last_s=4) > 0.9 * PER_S, SOON_S)

    prepare(other, provider, "killed", 900)
    killed = other.fork("run", "job.yaml", "--json")
    wait_for("requests of the other", lambda: provider.rate("killed", last_s=2) > 0, SOON_S)
    killed.kill()
    assert provider.rate("long", last_s=3) < 0.8 * PER_S
    wait_for("all of it, after a kill", lambda: provider.rate("long", last_s=4) > 0.9 * PER_S, SOON_S)
    project.ferry("cancel", "job.yaml")
    Cli.end(long, ("run",)).expect(130)

    log = provider.log()
    assert max(provider.rate(since=at, until=at + 5) for at in range(log[0][0], last)) <= 1.2 * PER_S
    assert sum(status == 429 for _, _, status in log) <= 0.01 * len(log)


def test_who_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run counts from its first beat until it leaves, is paused or dies; while the server is away nothing changes."""
    monkeypatch.setattr(shared_limits, "BEAT_S", 0.2)
    monkeypatch.setattr(members, "DEAD_S", 4.0)
    monkeypatch.setattr(members, "MOST_S", 1.0)
    waited: list[float] = []
    with LocalServer(tmp_path) as server, temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        api = Prefect(server.url, server.home)
        flow = api.post("flows/", {"name": "migrate"})["id"]
        running = {"type": "RUNNING"}
        first, second, third = (
            api.post("flow_runs/", {"flow_id": flow, "state": running, "tags": tags})["id"]
            for tags in (["ferry"], ["ferry"], ["shared:old"])
        )
        one = SharedLimits("old", first, pytest.fail)
        two = SharedLimits("old", second, pytest.fail)
        one.join(waited.append)
        assert (one.members, waited) == (1, [])
        two.join(waited.append)
        assert (two.members, waited) == (2, [JOIN_S])
        wait_for("the first to see it", lambda: one.members == 2)

        server.stop()
        time.sleep(members.DEAD_S + 1)
        assert (one.members, two.members) == (2, 2)
        server.start()
        server.ready()
        until = time.monotonic() + members.DEAD_S / 2
        while time.monotonic() < until:
            assert (one.members, two.members) == (2, 2)
            time.sleep(0.05)

        api.post(f"flow_runs/{second}/set_state", {"state": {"type": "PAUSED"}, "force": True})
        wait_for("the pause", lambda: one.members == 1)
        api.post(f"flow_runs/{second}/set_state", {"state": running, "force": True})
        wait_for("its end", lambda: one.members == 2)
        with required_client() as client:  # the third one beats once and dies
            client.update_flow_run_labels(UUID(third), {BEAT: 7})
        wait_for("another run", lambda: (one.members, two.members) == (3, 3))
        wait_for("its death", lambda: (one.members, two.members) == (2, 2))
        api.post(f"flow_runs/{third}/set_state", {"state": {"type": "CRASHED"}, "force": True})
        wait_for("its end at Prefect", lambda: one.members == 2)
        monkeypatch.setattr(members, "DEAD_S", 600.0)  # what follows must not look like a death
        two.leave()
        wait_for("the end of the other", lambda: one.members == 1)
        one.leave()
        assert set(api.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [first]}}})[0]["tags"]) == {
            "ferry", "shared:old",
        }  # fmt: skip
