"""One job on three of four machines whose clocks are apart: one is cut off, servers go away, processes are killed.

The machines are namespaces (tests.support.machines) with a worker each, which takes one run at a time. They share the
network, where the tests' servers answer through relays, and read the same sources. In the second tier, since a run of
a deployment takes 5 to 10 s to start on each machine, and an outage its time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.origin import Origin
from demo.s3 import S3Server
from ferry.state import open_state
from tasks.shards.files import SETTINGS
from tests.faults.amount import LONG, book_lost, only_long, some
from tests.flows.project import Cli, Project, serve, wait_for
from tests.support.helpers import access
from tests.support.lab import Lab, engines_of
from tests.support.machines import FAKETIME, Machine, Network, Relay, needs_machines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 if LONG else 900)]

QUICK = {"least_rows": 40, "look_s": 1.0, "fresh_s": 8.0, "silent_s": 12.0, "hint_s": 5.0, "unclaimed_s": 15.0}
AHEAD_S = 90.0
SOON_S = 300.0  # the workers of a busy machine take minutes to start a run
MACHINES, IN_FLIGHT = 3, 6
QUERY_S = 5  # workers that ask each second end before an outage of two minutes does, and keep the server busy
# Of an answer: rows must not run out before the last fault, and the workers of a busy machine take minutes to react.
SLOW_S = 5.0
STEADY_S = 1.0  # while rows are waited for
FAST_S = 0.1  # once what is tested has happened
# Rows of a process that is lost: those in flight, and of four seconds, with one answer a second, that it recorded
# nowhere yet. A machine that is cut off also has what it did with open connections until then.
UNRECORDED = 5 * IN_FLIGHT


@pytest.fixture(scope="module")
def lab(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    needs_machines()
    folder = tmp_path_factory.mktemp("lab")
    with Network(folder) as network:
        lab = Lab(folder, s3, network)
        lab.query_s = QUERY_S
        try:
            has_clocks = Path(FAKETIME).exists()  # apt-get install faketime
            # One more than the run uses: its worker has the next attempt at once, and not after a shard of its own.
            for clock_s in (0.0, AHEAD_S, -AHEAD_S, 0.0):
                lab.add_machine(clock_s if has_clocks else 0.0)
            yield lab
        finally:
            lab.close()


class Migration:
    """A job of several machines with its manifest, bucket and state."""

    def __init__(self, lab: Lab, origin: Origin, bucket: str, folder: Path, rows: int) -> None:
        self.lab, self.origin = lab, origin
        self.project = Project(folder, lab.cli, bucket)
        listed, self.bodies = serve(origin, rows)
        origin.latency_s = SLOW_S
        self._front = lab.network.relay(f"http://127.0.0.1:{origin.port}")
        for row in listed:
            row["url"] = row["url"].replace(f"http://127.0.0.1:{origin.port}", self._front.url)
        self.project.manifest(listed)
        self.project.job(
            manifest=str(folder / "products.csv"), state=f"s3://{bucket}/state", machines=MACHINES, chunk_rows=20,
            concurrency=IN_FLIGHT, destination=self.project.destination(endpoint_url=lab.store.url),
            source={"allow_private_addresses": [lab.network.address]},
        )  # fmt: skip
        self.files = open_state(f"s3://{bucket}/state", access(lab.cli.s3), folder / "cache")
        self.files.write(SETTINGS, json.dumps(QUICK).encode())

    def start(self, *options: str) -> subprocess.Popen[str]:
        return self.project.start("run", "job.yaml", "--on", self.lab.deployed.named("migrate/prod"), *options)

    def end(self, process: subprocess.Popen[str], within_s: float = 400) -> str:
        return Cli.end(process, ("run", "--on"), within_s).expect(0).text

    def parents(self) -> list[dict[str, Any]]:
        return [run for run in self.lab.runs(name={"like_": self.project.name}) if "shard" not in run["name"]]

    def shards(self) -> list[dict[str, Any]]:
        return [run for run in self.lab.runs(name={"like_": self.project.name}) if "shard" in run["name"]]

    def beats(self) -> list[dict[str, Any]]:
        found = []
        for name in self.files.list("shards"):
            with contextlib.suppress(FileNotFoundError):
                found += [json.loads(self.files.read(name))] if name.endswith(".beat") else []
        return found

    def attempts(self) -> int:
        """The highest number of an attempt at one shard that a process has begun."""
        claims = [Path(name).stem for name in self.files.list("shards") if name.endswith(".claim")]
        return max((int(claim.partition("-")[2]) for claim in claims), default=0)

    def wait_for_shards(self, count: int) -> None:
        wait_for("shards that move", lambda: sum(bool(b["beat"]["statuses"]) for b in self.beats()) >= count, SOON_S)

    def machine_of(self, run: dict[str, Any]) -> Machine:
        for machine in self.lab.machines:
            if engines_of(machine, run["id"]):
                return machine
        raise AssertionError(f"no machine executes {run['name']}")

    def live_shard(self) -> tuple[dict[str, Any], Machine]:
        """A shard that is at work, and its machine."""

        def found() -> tuple[dict[str, Any], Machine] | None:
            for run in self.shards():
                if run["state_type"] == "RUNNING":
                    with contextlib.suppress(AssertionError):
                        return run, self.machine_of(run)
            return None

        result: tuple[dict[str, Any], Machine] = wait_for("a shard at work", found, SOON_S)
        return result

    def wait_for_rows(self, more: int) -> None:
        """Wait until the origin has been asked for so many more objects."""
        enough = self.origin.total + more
        assert enough < len(self.bodies), "too few rows are left"
        self.origin.latency_s = STEADY_S
        wait_for("more rows", lambda: self.origin.total >= enough, SOON_S)
        self.origin.latency_s = SLOW_S

    def outcomes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name in [*self.files.list("ledger"), *self.files.list("outcomes")]:
            if name.endswith(".parquet"):
                found += pq.read_table(self.files.local(name, refresh=True)).to_pylist()
        return found

    def check(self, what: str, most_twice: int) -> None:
        """Nothing is lost, nothing moved twice beyond what was in flight, and the ledger has one line for each row."""
        stored = self.project.stored()
        book_lost(what, stored, self.bodies)
        assert stored == self.bodies
        lines = self.outcomes()
        statuses = Counter(line["status"] for line in lines)
        assert statuses.keys() <= {"copied", "unchanged"}
        # what was stored and not recorded yet: the next process finds that object
        assert statuses["unchanged"] <= most_twice
        assert len(lines) == len({line["row_id"] for line in lines}) == len(self.bodies)
        self.check_twice(most_twice)

    def check_twice(self, most: int) -> None:
        """No more objects were asked for twice than were in flight."""
        twice = {path for path, count in Counter(self.origin.requests).items() if count > 1}
        assert len(twice) <= most, len(twice)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@only_long  # the tiers have it in the other test
def test_a_machine_is_cut_off_and_comes_back(lab: Lab, origin: Origin, bucket: str, folder: Path) -> None:
    """Its shard goes elsewhere; when the link is back, it stops, and what it still says changes nothing."""
    job = Migration(lab, origin, bucket, folder, 1200)
    process = job.start()
    job.wait_for_shards(1)
    cut_off_and_back(job, process)
    origin.latency_s = FAST_S
    said = job.end(process)
    assert "1,200" in said
    job.check("a machine is cut off and comes back", UNRECORDED)


def test_one_thing_after_the_other(lab: Lab, origin: Origin, bucket: str, folder: Path) -> None:
    """A machine is cut off, Prefect's server away, processes of shards killed, state and destination away: in one run.

    It goes on meanwhile, completes by itself, and no row fails.
    """
    kills, rows = some(2, 30), some(1_200, 12_000)
    chosen = random.Random(20261201)
    job = Migration(lab, origin, bucket, folder, rows)
    process = job.start()
    job.wait_for_shards(1)
    cut_off_and_back(job, process)
    job.wait_for_rows(100)  # among them what the lost process had in flight
    job.check_twice(UNRECORDED)
    with away(lab.prefect, some(20, 120)):
        job.wait_for_rows(50)
    done = 0
    while done < kills and process.poll() is None:
        run, machine = job.live_shard()
        time.sleep(chosen.uniform(1, 6))
        done += kill(machine, run["id"])
    with away(lab.store, some(15, 60)):
        pass
    origin.latency_s = FAST_S
    said = job.end(process, 1500)
    assert f"{rows:,}" in said
    assert done == kills
    (parent,) = job.parents()
    assert parent["state_type"] == "COMPLETED"
    # objects whose answer was lost are found at the destination by the next request for them
    what = "a machine is cut off, servers go away and processes are killed"
    job.check(what, (kills + MACHINES + 1) * UNRECORDED)


def cut_off_and_back(job: Migration, process: subprocess.Popen[str]) -> None:
    """Cut the machine of a shard off until another process has the shard; the old process ends by itself."""
    run, machine = job.live_shard()
    machine.cut_off()
    try:
        wait_for("another attempt", lambda: job.attempts() > 1 or process.poll() is not None, SOON_S)
    finally:
        machine.reconnect()
    wait_for("the end of its process", lambda: not engines_of(machine, run["id"]), 120)


def kill(machine: Machine, run: str) -> bool:
    """Kill the process of a flow run, if it has not ended meanwhile."""
    found = engines_of(machine, run)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    wait_for("its end", lambda: not engines_of(machine, run), SOON_S)
    return bool(found)


@contextlib.contextmanager
def away(relay: Relay, seconds: float) -> Iterator[None]:
    """A server refuses connections for so long."""
    relay.cut()
    began = time.monotonic()
    try:
        yield
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    finally:
        relay.mend()
