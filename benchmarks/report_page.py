"""What `ferry report` takes: `python -m benchmarks.report_page`.

Makes the state of a job of 250,000 rows from 300 hosts, of which 2% failed, with the library's own planning and folding
and invented outcomes. Then a process of its own makes the report: its time, its peak memory, and the size of the page.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from benchmarks.place import ROOT
from ferry.core import Confirmed, ErrorClass, Outcome, Row, Status
from ferry.job import Job
from ferry.planning import Accesses, PlanOptions, make_plan
from ferry.reconcile import finish_run
from ferry.state import append_outcomes, open_state, read_table, rows_of
from ferry.storage import Access

ROWS, HOSTS, RATE = 250_000, 300, 400.0
START = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
TYPES = ["image/jpeg"] * 14 + ["image/png"] * 3 + ["image/webp"] * 2 + ["image/gif"]
FAILURES = ((ErrorClass.NOT_FOUND, 404, "404 Not Found"), (ErrorClass.TIMEOUT, None, "no complete response in 60 s"))


def make_state(folder: Path, rows: int, hosts: int) -> dict[str, Any]:
    """Writes list, job and state into ``folder``, and returns the job's settings."""
    with (folder / "list.csv").open("w") as file:
        file.write("url\n")
        file.writelines(
            f"https://img{n % (hosts if n % 3 else 5)}.shop.example/products/{n}.jpg\n" for n in range(rows)
        )
    given = {
        "name": "products", "manifest": str(folder / "list.csv"), "destination": f"file://{folder}/new/",
        "state": str(folder / "state"), "failure_budget": "3%", "public_url": "https://img.new.example/{key}",
    }  # fmt: skip
    (folder / "job.yaml").write_text(yaml.safe_dump(given))
    job = Job.model_validate(given)
    state = open_state(given["state"], Access(), folder)
    planned = make_plan(job, state, Accesses(Access(), Access()), PlanOptions(run_no=1, mode="plain"))
    invented = Invented(job.settings_digest())
    for ref in planned.chunks:
        chunk = rows_of(read_table(state.local(ref.uri)))
        append_outcomes(state, [invented.outcome(row, ref.digest) for row in chunk], 1, ref.digest, 0)
    seconds = rows / RATE
    finish_run(job, state, 1, progress={"seconds": seconds, "bytes": rows * 80_000, "rate": RATE}, whole=True)
    return given


class Invented:
    """Outcomes of rows, one after the other: some hosts are slow, some fail often, and for a minute all are slower."""

    def __init__(self, settings: str, seed: int = 1) -> None:
        self._settings, self._rng, self._at = settings, random.Random(seed), 0.0

    def outcome(self, row: Row, chunk: str) -> Outcome:
        rng = self._rng
        self._at += rng.expovariate(RATE * (0.6 if 200 < self._at < 260 else 1))
        at = START + timedelta(seconds=self._at)
        host_no = int(row.source.removeprefix("https://img").partition(".")[0])
        took = rng.lognormvariate(-2 + host_no % 7 / 4, 0.5)
        failed = rng.random() < (0.2 if host_no % 12 == 0 else 0.005)
        error, code, message = FAILURES[host_no % 5 == 0] if failed else (None, None, None)
        return Outcome(
            row_id=row.row_id, source=row.source, key=row.key, id=None, error_class=error, status_code=code,
            status=Status.FAILED if failed else Status.COPIED, message=message, retryable=error == ErrorClass.TIMEOUT,
            reason=row.reason, attempt=row.attempt, requests=1, size=None if failed else int(rng.lognormvariate(11, 1)),
            md5=None if failed else row.row_id[:32], sha256=None if failed else row.row_id,
            content_type=None if failed else rng.choice(TYPES),
            source_etag=None, source_last_modified=None, dest_etag=None, started_at=at - timedelta(seconds=took),
            recorded_at=at, run_no=1, chunk=chunk, settings_digest=self._settings,
            confirmed=None if failed else Confirmed.DIGEST,
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report_page", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--hosts", type=int, default=HOSTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-report-bench-") as name:
        folder = Path(name)
        # In a process of its own: a fork's peak memory begins with that of its parent.
        maker = multiprocessing.get_context("spawn").Process(target=make_state, args=(folder, given.rows, given.hosts))
        maker.start()
        maker.join()
        argv = [sys.executable, "-P", "-m", "flows", "report", "job.yaml", "--out", "report.html"]
        began = time.monotonic()
        process = subprocess.Popen(argv, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
        _, status, used = os.wait4(process.pid, 0)
        seconds, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
        if status:
            return 1
        print(
            f"{given.rows:,} rows, {given.hosts:,} hosts: {seconds:.1f} s, {cpu:.1f} s of CPU, peak "
            f"{used.ru_maxrss / 1024:.0f} MB, a page of {(folder / 'report.html').stat().st_size / 1000:.0f} kB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
