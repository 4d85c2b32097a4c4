"""What planning and folding take for 10 million rows: `python -m benchmarks.rows` (docs/explanation/performance.md).

No byte is moved: a list is generated, and outcomes are written as chunks would write them. Each step runs in a process
of its own. Its peak memory is the kernel's (VmHWM), and its spool the largest size of the spool's files, which is
looked at twice a second.

| step | what it is |
|---|---|
| first plan | of a list that no run has seen |
| first end | of that run: the fold of the outcomes of all rows, then the counts of its summary |
| rerun | the plan of the same list once every row is done |
| delta plan | of a list in which 1% of the rows have other ETags |
| delta end | of that run: the fold of their outcomes, then the counts |
| status, failures, report, export | what the commands read and write, without their start |
| verify --list | the ledger beside a listing that has all of its objects |
| verify | what a verification that reads objects takes from the ledger: the outcomes of all of them, in parts |
| prove | of a verification that is over, with such a listing |
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.nights import CHANGED, Cost, apart, fold, plan, settle
from ferry.core import Progress
from ferry.cutover import export
from ferry.job import Job
from ferry.proof import Readings, Verification, write_proof
from ferry.reconcile import EVERYTHING, beside_listing, compare_with_listing, count_expected, expected_rows
from ferry.report import make_report
from ferry.state import FailureFilter, State, compact_ledger, count, failure_groups, folded_ledger, outcomes_of
from ferry.state.files import DirectoryState
from ferry.storage import ObjectInfo


def write_list(path: Path, rows: int, version: str) -> None:
    """Writes rows with an ID, an address of 75 bytes and an ETag as Parquet."""
    duckdb.connect().execute(
        "COPY (SELECT n::VARCHAR AS id, "
        "printf('https://images.shop.example/catalogue/products/%09d/large/front.jpg', n) AS url, "
        f"md5(n || '-' || ({version.format(n='n')})) AS etag FROM range({rows}) r(n)) TO '{path}' "
        "(FORMAT parquet, COMPRESSION zstd)"
    )


def make_job(folder: Path, mode: str, *, to_directory: bool = False) -> Job:
    there = folder / "there"
    there.mkdir(exist_ok=True)
    values = {"name": "rows", "manifest": str(folder / "list.parquet"), "mode": mode, "on_existing": "overwrite"}
    return Job.model_validate({**values, "destination": {"uri": f"file://{there}/" if to_directory else "s3://rows/"}})


def end(job: Job, root: Path, run_no: int) -> float:
    """Ends a run, and returns the seconds that the fold took."""
    started = time.perf_counter()
    compact_ledger(DirectoryState(root), run_no)
    seconds = time.perf_counter() - started
    fold(job, root, run_no)  # the ledger is folded already
    return seconds


def status(root: Path) -> int:
    with folded_ledger(DirectoryState(root)) as con:
        return count(con).planned


def failures(root: Path) -> int:
    with folded_ledger(DirectoryState(root)) as con:
        return len(failure_groups(con, FailureFilter()))


def verify_list(root: Path) -> int:
    state = DirectoryState(root)
    return sum(
        compare_with_listing(outcomes, listed, 9, Progress()).checked
        for outcomes, listed in beside_listing(state, _pages(state), 5_000)
    )


def verify(root: Path) -> int:
    state = DirectoryState(root)
    found = sum(len(list(outcomes_of(part))) for part in expected_rows(state, 5_000))
    assert found == count_expected(state)
    return found


def prove(root: Path, job: Job) -> str:
    state, now = DirectoryState(root), datetime.now(UTC)
    done = Verification("whole", now, now, 0, 0, 0, 0, 0, 0, {})
    readings = Readings(root.parent / "readings.csv").path
    return write_proof(state, job, readings, done, EVERYTHING, lambda: _pages(state)).name


def _pages(state: State) -> Iterator[Sequence[ObjectInfo]]:
    with folded_ledger(state) as con:
        found = con.execute("SELECT key, size, dest_etag FROM latest WHERE status = 'copied'")
        while lines := found.fetchmany(1000):
            yield [ObjectInfo(key, size, etag, None) for key, size, etag in lines]


def report(root: Path, job: Job) -> int:
    return len(make_report(job, DirectoryState(root)))


def write_export(root: Path, job: Job, form: str) -> int:
    return export(DirectoryState(root), job, root.parent / f"map.{form}", at=datetime.now(UTC)).rows


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
    parser.add_argument("--to-directory", action="store_true", help="plan for a directory instead of a bucket")
    parser.add_argument("--plans-only", action="store_true", help="end after the delta run: for 100 million rows")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-rows-") as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        state = DirectoryState(folder / "state")
        print(f"{given.rows:,} rows\n\n| step | time | memory | spool |\n|---|---:|---:|---:|", flush=True)
        for run_no, night, mode, version in ((1, "first", "full", "'1'"), (3, "delta", "delta", CHANGED)):
            job = make_job(folder, mode, to_directory=given.to_directory)
            write_list(folder / "list.parquet", given.rows, version)
            planned = measure(f"{night} plan", state.spool_dir, plan, job, state.root, run_no)
            settle(job, state, planned.answer, run_no, version)
            ended = measure(f"{night} end", state.spool_dir, end, job, state.root, run_no)
            print(f"| of it the fold | {ended.answer:.1f} s | | |", flush=True)
            if mode == "full":
                again = measure("rerun", state.spool_dir, plan, job, state.root, 2)
                assert not again.answer.todo, again.answer.todo
        commands: tuple[tuple[str, Callable[..., Any], tuple[Any, ...]], ...] = (
            ("status", status, ()), ("failures", failures, ()), ("verify --list", verify_list, ()),
            ("verify", verify, ()),
            ("export csv", write_export, (job, "csv")), ("export parquet", write_export, (job, "parquet")),
            ("prove", prove, (job,)), ("report", report, (job,)),
        )  # fmt: skip
        for step, work, given_too in commands if not given.plans_only else ():
            measure(step, state.spool_dir, work, state.root, *given_too)
        print(f"\nrows of the delta run: {planned.answer.todo}")


if __name__ == "__main__":
    main()
