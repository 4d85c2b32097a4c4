"""What a proof and the files of a cutover take: `python -m benchmarks.cutover`.

Makes the state of benchmarks.report_page, a job of 250,000 rows, and has a process of its own write each file. Prints
its time, its peak memory, and the size. The proof is written as after a verification of all objects, which is not part
of it: that takes as long as reading them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml

from benchmarks.place import ROOT
from benchmarks.report_page import HOSTS, ROWS, make_state
from ferry.job import Job
from ferry.proof import Readings, Verification, write_proof
from ferry.reconcile import EVERYTHING
from ferry.state import folded_ledger, open_state
from ferry.storage import Access, ObjectInfo

FORMATS = {
    "csv": "csv", "parquet": "parquet", "nginx-map": "conf", "apache-rewritemap": "map", "haproxy-map": "map",
    "cloudflare-bulk-redirects": "csv", "sql": "sql",
}  # fmt: skip


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
        maker = multiprocessing.get_context("spawn").Process(target=make_state, args=(folder, given.rows, HOSTS))
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
