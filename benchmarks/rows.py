"""What planning and folding take for 10 million rows: `python -m benchmarks.rows` (docs/explanation/performance.md).

No byte is moved: a list is generated, and outcomes are written as chunks would write them. Each step runs in a process
of its own. Its peak memory is the kernel's (getrusage), and its spool the largest size of the spool's files, which is
looked at twice a second.

| step | what it is |
|---|---|
| first plan | of a list that no run has seen |
| first fold | of the outcomes of all rows |
| rerun | the plan of the same list once every row is done |
| delta plan | of a list in which 1% of the rows have other ETags |
| delta fold | of the outcomes of these |
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.nights import CHANGED, Cost, apart, fold, plan, settle
from ferry.job import Job
from ferry.state.files import DirectoryState


def write_list(path: Path, rows: int, version: str) -> None:
    """Writes rows with an ID, an address of 75 bytes and an ETag as Parquet."""
    duckdb.connect().execute(
        "COPY (SELECT n::VARCHAR AS id, "
        "printf('https://images.shop.example/catalogue/products/%09d/large/front.jpg', n) AS url, "
        f"md5(n || '-' || ({version.format(n='n')})) AS etag FROM range({rows}) r(n)) TO '{path}' "
        "(FORMAT parquet, COMPRESSION zstd)"
    )


def make_job(folder: Path, mode: str) -> Job:
    there = folder / "there"
    there.mkdir(exist_ok=True)
    values = {"name": "rows", "manifest": str(folder / "list.parquet"), "mode": mode, "on_existing": "overwrite"}
    return Job.model_validate({**values, "destination": {"uri": f"file://{there}/"}})


def measure(step: str, spool: Path, work: Callable[..., Any], *given: Any) -> Cost:
    """Runs a step in a process of its own, and prints what it took."""
    done, largest = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.5):
            largest[0] = max(largest[0], _size(spool))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        cost = apart(work, *given)
    finally:
        done.set()
        thread.join()
    print(f"| {step} | {cost.seconds:.1f} s | {cost.peak_mb:,.0f} MB | {largest[0] / 1e9:.2f} GB |", flush=True)
    return cost


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # deleted meanwhile
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="keep list and state there (default: a temporary directory)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-rows-") as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        state = DirectoryState(folder / "state")
        print(f"{given.rows:,} rows\n\n| step | time | memory | spool |\n|---|---:|---:|---:|", flush=True)
        for run_no, night, mode, version in ((1, "first", "full", "'1'"), (3, "delta", "delta", CHANGED)):
            job = make_job(folder, mode)
            write_list(folder / "list.parquet", given.rows, version)
            planned = measure(f"{night} plan", state.spool_dir, plan, job, state.root, run_no)
            settle(job, state, planned.answer, run_no, version)
            measure(f"{night} fold", state.spool_dir, fold, job, state.root, run_no)
            if mode == "full":
                again = measure("rerun", state.spool_dir, plan, job, state.root, 2)
                assert not again.answer.todo, again.answer.todo
        print(f"\nrows of the delta run: {planned.answer.todo}")


if __name__ == "__main__":
    main()
