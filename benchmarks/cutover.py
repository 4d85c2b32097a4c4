"""What a proof, a report and the files of a cutover take: `python -m benchmarks.cutover`.

Makes the state of a job of 250,000 rows from 300 hosts, of which 2% failed, with the library's own planning and folding
and invented outcomes. Then a process of its own writes each file. Prints its time, its peak memory, and the size. The
proof is written as after a verification of all objects, which is not part of it: that takes as long as reading them.
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
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from benchmarks.place import ROOT
from ferry.core import Confirmed, ErrorClass, Outcome, Row, Status
from ferry.job import Job
from ferry.planning import Accesses, PlanOptions, make_plan
from ferry.proof import Readings, Verification, write_proof
from ferry.reconcile import EVERYTHING, finish_run
from ferry.state import append_outcomes, folded_ledger, open_state, read_table, rows_of
from ferry.storage import Access, ObjectInfo

ROWS, HOSTS, RATE = 250_000, 300, 400.0
START = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
TYPES = ["image/jpeg"] * 14 + ["image/png"] * 3 + ["image/webp"] * 2 + ["image/gif"]
FAILURES = ((ErrorClass.NOT_FOUND, 404, "404 Not Found"), (ErrorClass.TIMEOUT, None, "no complete response in 60 s"))
FORMATS = {
    "csv": "csv", "parquet": "parquet", "nginx-map": "conf", "apache-rewritemap": "map", "haproxy-map": "map",
    "cloudflare-bulk-redirects": "csv", "sql": "sql",
}  # fmt: skip


def make_state(folder: Path, rows: int) -> dict[str, Any]:
    """Writes list, job and state into ``folder``, and returns the job's settings."""
    with (folder / "list.csv").open("w") as file:
        file.write("url\n")
        file.writelines(
            f"https://img{n % (HOSTS if n % 3 else 5)}.shop.example/products/{n}.jpg\n" for n in range(rows)
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


def prove(folder: Path) -> None:
    """Write the proof of the state in ``folder``, with a listing that has all of its objects."""
    job = Job.model_validate(yaml.safe_load((folder / "job.yaml").read_text()))
    state, now = open_state(str(job.state), Access(), folder), datetime.now(UTC)

    def pages() -> Iterator[Sequence[ObjectInfo]]:
        with folded_ledger(state) as con:
            found = con.execute("SELECT key, size FROM latest WHERE status = 'copied' ORDER BY key")
            while lines := found.fetchmany(1000):
                yield [ObjectInfo(key, size, None, now) for key, size in lines]

    done = Verification("whole", now, now, ROWS, 0, 0, 0, 0, 0, {"digest": ROWS})
    write_proof(state, job, Readings(folder / "readings.csv").path, done, EVERYTHING, pages)


def measure(name: str, argv: Sequence[str], folder: Path, made: Path) -> None:
    """Run a command and print what it took, and the size of the file or folder that it made."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *argv], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    seconds, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
    files = [path for path in (made.rglob("*") if made.is_dir() else [made]) if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    failed = f", failed with {os.waitstatus_to_exitcode(status)}" if status else ""
    print(f"{name:26} {seconds:6.1f} s {cpu:6.1f} s of CPU {used.ru_maxrss / 1024:6.0f} MB {size:8.1f} MB{failed}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cutover", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--prove", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prove:
        prove(given.prove)
        return 0
    with tempfile.TemporaryDirectory(prefix="ferry-cutover-bench-") as name:
        folder = Path(name)
        maker = multiprocessing.get_context("spawn").Process(target=make_state, args=(folder, given.rows))
        maker.start()
        maker.join()
        print(f"{given.rows:,} rows               time            CPU  peak memory       size")
        measure("proof", ["benchmarks.cutover", "--prove", str(folder)], folder, folder / "state" / "proofs")
        out = folder / "report.html"
        measure("report", ["flows", "report", "job.yaml", "--out", str(out)], folder, out)
        for form, ending in FORMATS.items():
            out = folder / f"{form}.{ending}"
            measure(form, ["flows", "export", "job.yaml", str(out), "--format", form], folder, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
