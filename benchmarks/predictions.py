"""What `ferry check` predicts, beside what the run takes: `python -m benchmarks.predictions`.

Three origins (nginx): fast; limited to 200 requests per second, with 429 beyond; and one that lacks 5% of the objects.
Each round checks a job for an empty prefix of a SeaweedFS, then runs it. Time is right if it is within 20% of the
middle of the predicted range, and failures are right if they are within their interval.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import nginx
from benchmarks.images import images
from benchmarks.place import BENCH, ROOT, environment, work_folders
from demo.s3 import S3Server

ORIGINS = {"fast": "origin", "rate-limited": "limited", "5% missing": "origin"}
BROKEN = 0.05
MOST_OFF = 0.2


def write_job(folder: Path, url: str, paths: list[str], broken: float, store: S3Server) -> Path:
    """Writes the list and the job of one round, and returns the job file."""
    folder.mkdir()
    seeded = random.Random(folder.name)
    rows = [f"{url}/{'missing/' if seeded.random() < broken else ''}{path}" for path in paths]
    (folder / "list.csv").write_text("url\n" + "\n".join(rows) + "\n")
    job = {
        "name": folder.name, "manifest": "list.csv", "failure_budget": "10%",
        "destination": {"uri": f"s3://copied/{folder.name}/", "endpoint_url": store.endpoint_url},
        "source": {"allow_private_addresses": ["127.0.0.1"]},
    }  # fmt: skip
    (folder / "job.yaml").write_text(json.dumps(job))
    return folder / "job.yaml"


def ferry(job: Path, env: dict[str, str], command: str) -> dict[str, Any]:
    """Runs a command of Ferry, and returns its JSON."""
    argv = [sys.executable, "-m", "flows", command, str(job), "--json"]
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"ferry {command} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def one_round(job: Path, env: dict[str, str]) -> tuple[str, bool]:
    """Checks and runs a job. Returns a line of the table, and whether both predictions were right."""
    expected = ferry(job, env, "check")["prediction"]
    run = ferry(job, env, "run")
    low, middle, high = (expected["seconds"][name] for name in ("low", "value", "high"))
    fail_low, fail_high = (expected["failures"][name] for name in ("low", "high"))
    took, failed = run["seconds"], run["counts"]["failed"]
    off = took / middle - 1
    time = f"{low:6.1f} to {high:6.1f} s | {took:6.1f} s | {off:+7.0%}"
    right = abs(off) <= MOST_OFF and fail_low <= failed <= fail_high
    return f"{time} | {fail_low:6,.0f} to {fail_high:6,.0f} | {failed:6,}", right


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=__doc__)
    parser.add_argument("--n", type=int, default=20_000, help="rows of each list")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    nginx.install()
    pool, entries = images(BENCH, given.n)
    paths, wrong = [path for path, _, _ in entries], 0
    for path in pool.rglob("*.jpg"):  # from the disk's cache in every round: the first one would wait for the disk
        path.read_bytes()
    with work_folders(keep=False, room=4 * sum(size for _, _, size in entries)) as (_, folder):
        table = folder / "md5.tsv"
        table.write_text("")
        with S3Server(folder / "s3") as store:
            store.make_bucket("copied")
            env = environment(folder, AWS_ACCESS_KEY_ID=store.access_key, AWS_SECRET_ACCESS_KEY=store.secret_key)
            env |= {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT)}
            port = int(store.endpoint_url.rpartition(":")[2])
            with nginx.Nginx(folder / "nginx", pool, port, table) as web:
                print("origin       |        predicted time |     took |     off |  predicted failures | failed")
                for number, (at, name) in itertools.product(range(given.rounds), enumerate(ORIGINS)):
                    broken = BROKEN if "missing" in name else 0.0
                    job = write_job(folder / f"job-{number}-{at}", web.url(ORIGINS[name]), paths, broken, store)
                    words, right = one_round(job, env)
                    wrong += not right
                    print(f"{name:<12} | {words}{'' if right else '   wrong'}", flush=True)
            subprocess.run([sys.executable, "-m", "flows", "server", "stop"], env=env, check=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
