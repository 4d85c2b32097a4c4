"""What several machines cost, and what they wait for: `python -m benchmarks.machines` (docs/how-to/scale.md).

Machines are namespaces (tests.support.machines): root makes them. Their workers, the Prefect server, the origin (nginx
in the disk's cache) and the destination (nginx, which stores nothing) share this machine's cores, so that a rate with
more machines says nothing. The first moment is when all machines transfer, at the second one a tenth is left.

| figure | how it is measured |
|---|---|
| CPU an object | of all processes of a run between two moments, by the objects stored in between |
| start of a shard | from its submission to its first outcome in the state |
| requests | of all machines to Prefect's API, by the server's log |
| after a kill | from SIGKILL of a shard's process to the first outcome of the next attempt |
| limited origin | objects per second (see `limited`), by the log of an origin that refuses more than 200 requests |
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import accesslog, nginx
from benchmarks.images import images
from benchmarks.nginx import Nginx
from benchmarks.place import BENCH, work_folders
from demo.s3 import S3Server
from ferry.state import State, open_state
from tasks.shards.files import SETTINGS
from tests.support.helpers import access
from tests.support.lab import Lab, engines_of
from tests.support.machines import Network, needs_machines

IMAGES = 5_000
LOOK_S = 0.2
TICKS = os.sysconf("SC_CLK_TCK")
WITHIN_S = 600.0
REQUEST = re.compile(r'"(?:GET|POST|PATCH|PUT|DELETE) /api')


@dataclass(slots=True)
class Bench:
    """The servers, and how many jobs there were."""

    lab: Lab
    web: Nginx
    s3: S3Server
    origins: dict[str, str]  # nginx's servers as the machines see them
    paths: list[str]
    jobs: int = 0


class Run:
    """One run of one job, followed until its end."""

    def __init__(self, bench: Bench, rows: int, machines: int, origin: str = "origin") -> None:
        self.bench = bench
        bench.jobs += 1
        self.name = f"machines-{bench.jobs}"
        self.folder = bench.lab.folder / self.name
        self.folder.mkdir()
        lines = (f"{bench.origins[origin]}/{bench.paths[n % IMAGES]}?{n},{n // IMAGES}/{bench.paths[n % IMAGES]}"
                 for n in range(rows))  # fmt: skip
        (self.folder / "list.csv").write_text("url,key\n" + "\n".join(lines) + "\n")
        uri = f"s3://state/{self.name}"
        job = {
            "name": self.name, "manifest": str(self.folder / "list.csv"), "state": uri, "machines": machines,
            "destination": {"uri": f"s3://sink/{self.name}/", "endpoint_url": bench.lab.store.url},
            "source": {"allow_private_addresses": [bench.lab.network.address]}, "on_existing": "overwrite",
        }  # fmt: skip
        (self.folder / "job.yaml").write_text(json.dumps(job))
        self.state: State = open_state(uri, access(bench.s3), self.folder / "cache")
        settings = {"least_rows": rows // (3 * machines) or 1, "per_machine": 1}
        self.state.write(SETTINGS, json.dumps(settings).encode())
        self.cpu: dict[int, float] = {}  # of each process that was seen
        self.first: dict[str, float] = {}  # when an attempt's first outcome was seen, by `SHARD-ATTEMPT`
        self.stored_from = accesslog.position(bench.web.log("sink"))
        self.api_from = bench.lab.server_log.stat().st_size
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows", "run", "job.yaml", "--on", bench.lab.deployed.named("migrate/prod")],
            cwd=self.folder, env=bench.lab.cli.environment, stdout=(self.folder / "out").open("wb"),
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def look(self) -> bool:
        """Notes what has happened, and returns whether the run is still going on."""
        for machine in self.bench.lab.machines:
            for pid in machine.processes():
                with contextlib.suppress(OSError):
                    if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        continue
                    line = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    self.cpu[pid] = (int(line[11]) + int(line[12])) / TICKS
        for name in self.state.list("shards"):
            attempt = Path(name).stem
            if name.endswith(".beat") and attempt not in self.first:
                with contextlib.suppress(FileNotFoundError):
                    if json.loads(self.state.read(name))["beat"]["statuses"]:
                        self.first[attempt] = time.time()
        time.sleep(LOOK_S)
        return self.process.poll() is None

    def stored(self) -> int:
        """How many objects the destination has taken."""
        accesslog.settle()
        with self.bench.web.log("sink").open("rb") as log:
            log.seek(self.stored_from)
            return log.read().count(f"/{self.name}/".encode())

    def moment(self) -> tuple[float, int]:
        """CPU seconds and objects until now."""
        self.look()
        return sum(self.cpu.values()), self.stored()

    def end(self) -> None:
        until = time.monotonic() + WITHIN_S
        while self.look():
            if time.monotonic() > until:
                self.process.kill()
                raise SystemExit(f"{self.name} did not end within {WITHIN_S:.0f} s")
        if self.process.returncode:
            raise SystemExit(f"{self.name}: exit code {self.process.returncode}\n{(self.folder / 'out').read_text()}")

    def shards(self) -> list[dict[str, Any]]:
        """The flow runs of shards and of the run itself."""
        return self.bench.lab.runs(name={"like_": f"{self.name} #"})

    def starts(self) -> list[float]:
        """Seconds from the submission of each shard's attempt to its first outcome, in their order."""
        found = []
        for run in self.shards():
            if shard := re.search(r"shard (\d+)$", run["name"]):
                attempt = f"{shard[1]}-{run['parameters']['attempt']}"
                submitted = datetime.fromisoformat(run["created"]).timestamp()
                if attempt in self.first:
                    found.append(self.first[attempt] - submitted)
        return sorted(found)

    def requests(self) -> int:
        """Requests to Prefect's API since the start."""
        with self.bench.lab.server_log.open() as log:
            log.seek(self.api_from)
            return sum(bool(REQUEST.search(line)) for line in log)


@dataclass(slots=True)
class Cost:
    """Of runs with one number of machines."""

    cpu_ms: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)


def moved(bench: Bench, rows: int, machines: int, cost: Cost) -> None:
    """Runs a job, and adds what it took."""
    run = Run(bench, rows, machines)
    while run.look() and (not run.stored() or len(run.first) < machines - 1):
        pass
    before_cpu, before = run.moment()
    while run.look() and run.stored() < rows * 0.9:
        pass
    cpu, objects = run.moment()
    run.end()
    assert run.stored() >= rows, f"{rows - run.stored()} objects of {run.name} were not stored"
    chunks = len(json.loads(run.state.read("plan/plan.json"))["chunks"])
    cost.cpu_ms.append((cpu - before_cpu) / (objects - before) * 1000)
    cost.starts += run.starts()
    cost.requests.append(run.requests() / chunks)


def killed(bench: Bench, rows: int) -> float:
    """Kills a shard's process once it transfers, and returns the seconds until the next attempt's first outcome."""
    run = Run(bench, rows, 3)
    while run.look() and not run.first:
        pass
    if not run.first:
        run.end()
        raise SystemExit(f"no other machine transferred a row of {run.name}:\n{(run.folder / 'out').read_text()}")
    attempt = next(iter(run.first))
    shard = attempt.partition("-")[0]
    (flow_run,) = [found["id"] for found in run.shards() if found["name"].endswith(f"shard {shard}")]
    (pid,) = [pid for machine in bench.lab.machines for pid in engines_of(machine, flow_run)]
    os.kill(pid, signal.SIGKILL)
    at = time.time()
    run.end()
    return run.first[f"{shard}-2"] - at


def limited(bench: Bench, rows: int, machines: int) -> tuple[float, float]:
    """Returns what an origin of 200 requests per second answered per second, and the share that it refused.

    Both are of the time from when all machines transfer until 70% are stored (90% with one machine), the share from
    ten seconds later on. Each machine has one shard; the run begins with its own while the others start.
    """
    run = Run(bench, rows, machines, "limited")
    while run.look() and (not run.stored() or len(run.first) < machines - 1):
        pass
    since = accesslog.position(bench.web.log("limited"))
    while run.look() and run.stored() < rows * (0.9 if machines == 1 else 0.7):
        pass
    accesslog.settle()
    window = accesslog.read_window(bench.web.log("limited"), since)
    run.end()
    return len(window.done_at) / window.steady_s, window.refused_later or 0.0


def measure(bench: Bench, rows: int, rounds: int) -> None:
    costs = {machines: Cost() for machines in (1, 2, 3)}
    for _ in range(rounds):
        for machines, cost in costs.items():  # interleaved
            moved(bench, rows, machines, cost)
    print("| machines | CPU an object | start of a shard | requests a chunk |\n|---|---:|---:|---:|")
    for machines, cost in costs.items() if rounds else ():
        start = f"{median(cost.starts):.1f} s" if cost.starts else ""
        print(f"| {machines} | {median(cost.cpu_ms):.3f} ms | {start} | {median(cost.requests):.1f} |", flush=True)
    print(f"\nafter a kill: {killed(bench, rows):.1f} s until the shard's next outcome", flush=True)
    for machines in (1, 3):
        rate, refused = limited(bench, 24_000, machines)
        print(f"origin of 200/s, {machines} machines: {rate:.0f}/s, {refused:.2%} refused after 10 s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machines", description=__doc__)
    parser.add_argument("--rows", type=int, default=120_000, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="0: only after a kill, and the limited origin")
    given = parser.parse_args()
    nginx.install()
    needs_machines()
    pool, entries = images(BENCH, IMAGES)
    with work_folders(keep=False, room=sum(size for _, _, size in entries)) as (_, folder):
        table = folder / "md5.tsv"
        table.write_text("".join(f"{Path(path).name}\t{md5}\n" for path, md5, _ in entries))
        with S3Server(folder / "s3") as s3, Network(folder) as network:
            s3.make_bucket("state")
            port = int(s3.endpoint_url.rpartition(":")[2])
            with Nginx(folder / "nginx", pool, port, table) as web:
                lab = Lab(folder, s3, network, web.url("sink"), PREFECT_LOGGING_SERVER_LEVEL="INFO")
                try:
                    for _ in range(3):
                        lab.add_machine()
                    names = ("origin", "limited")
                    origins = {name: network.relay(web.url(name)).url for name in names}
                    measure(Bench(lab, web, s3, origins, [path for path, _, _ in entries]), given.rows, given.rounds)
                finally:
                    lab.close()


if __name__ == "__main__":
    main()
