"""What the commands cost that people wait for: `python -m benchmarks.commands`.

A job of 3,000 rows, of which 1% fail, is run once. Then each round takes the commands in turn, as processes of their
own: their processor time (user and system), their wall-clock time, and, for a run with nothing left to do, the time to
its first line. The table has medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import nginx
from benchmarks.images import images
from benchmarks.place import BENCH, ROOT, environment, work_folders
from demo.ports import free_ports

ROWS = 3_000
MISSING = 100  # one row in so many
COMMANDS = ("--help", "status job.yaml", "failures job.yaml", "plan job.yaml", "run job.yaml")


@dataclass
class Cost:
    """The seconds of one command, in each round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    first_line: list[float] = field(default_factory=list)


def measure(command: str, folder: Path, env: dict[str, str], cost: Cost) -> None:
    """Runs a command once, and adds what it cost."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    argv = [sys.executable, "-P", "-m", "flows", *command.split()]
    with subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        cost.first_line.append(time.monotonic() - began)
        process.stdout.read()
    if process.returncode not in (0, 1):  # 1: more rows failed than a job's default budget of 0.1% lets through
        raise RuntimeError(f"ferry {command} ended with {process.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost.cpu.append(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
    cost.wall.append(time.monotonic() - began)


def write_job(folder: Path, url: str, paths: list[str]) -> None:
    """Writes the list and the job, with one address in MISSING that the origin does not have."""
    folder.mkdir()
    rows = (f"{url}/{'gone/' if number % MISSING == 0 else ''}{path}" for number, path in enumerate(paths))
    (folder / "list.csv").write_text("url\n" + "\n".join(rows) + "\n")
    job = {
        "name": "images", "manifest": "list.csv", "destination": f"file://{folder}/copies/",
        "source": {"allow_private_addresses": ["127.0.0.1"]},
    }  # fmt: skip
    (folder / "job.yaml").write_text(json.dumps(job))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commands", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    nginx.install()
    pool, entries = images(BENCH, ROWS)
    costs = {command: Cost() for command in COMMANDS}
    with work_folders(keep=False, room=4 * sum(size for _, _, size in entries)) as (_, folder):
        table = folder / "md5.tsv"
        table.write_text("")
        env = environment(folder, PREFECT_HOME=str(folder / "prefect"), PYTHONPATH=str(ROOT))
        with nginx.Nginx(folder / "nginx", pool, free_ports(1)[0], table) as web:
            write_job(folder / "job", web.url("origin"), [path for path, _, _ in entries])
            measure("run job.yaml", folder / "job", env, Cost())
            for _ in range(given.rounds):
                for command, cost in costs.items():
                    measure(command, folder / "job", env, cost)
        subprocess.run([sys.executable, "-m", "flows", "server", "stop"], env=env, check=False)
    print(f"{ROWS:,} rows, {given.rounds} rounds in turn, medians, {os.cpu_count()} cores:\n")
    print("| command | CPU | to its first line | in all |\n|---|---|---|---|")
    for command, cost in costs.items():
        cpu, first, wall = (statistics.median(times) for times in (cost.cpu, cost.first_line, cost.wall))
        print(f"| `ferry {command}` | {cpu:.2f} s | {first:.2f} s | {wall:.2f} s |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
