"""The cost of delta runs with a million finished rows: `python -m benchmarks.nights` (docs/explanation/delta-runs.md).

It answers two questions without a transfer: the time and size of the plan of a delta run after 1% changed, and whether
plan and state grow with the number of delta runs. Outcomes are written as chunks would write them. Planning and folding
run in a process each, whose peak memory is the kernel's (VmHWM).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from benchmarks.watch import memory_bytes
from ferry.job.model import Job
from ferry.planning.options import Accesses, PlanOptions
from ferry.planning.planner import make_plan
from ferry.reconcile.finish import finish_run
from ferry.state import ledger, parquet
from ferry.state.files import DirectoryState
from ferry.state.plan_file import ChunkRef, Planned
from ferry.storage.access import Access

FOLDERS = ("plan", "chunks", "ledger", "outcomes", "history", "reports")
CHANGED = "CASE WHEN {n} % 100 = 7 THEN '2' ELSE '1' END"  # the version of row n's object, in SQL


class Cost(NamedTuple):
    seconds: float
    peak_mb: float
    answer: Any


def apart(work: Callable[..., Any], *given: Any) -> Cost:
    """Runs ``work(*given)`` in a new process."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_apart, args=(theirs, work, given))
    process.start()
    theirs.close()
    cost = Cost(*ours.recv())
    process.join()
    return cost


def _apart(pipe: Any, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    started = time.perf_counter()
    answer = work(*given)
    seconds = time.perf_counter() - started
    peak = memory_bytes(Path("/proc/self/status").read_bytes(), b"VmHWM:")
    pipe.send((seconds, peak / 1e6, answer))


def plan(job: Job, root: Path, run_no: int) -> Planned:
    return make_plan(job, DirectoryState(root), Accesses(Access(), Access()), PlanOptions(run_no))


def fold(job: Job, root: Path, run_no: int) -> dict[str, Any]:
    return finish_run(job, DirectoryState(root), run_no)


def settle(job: Job, state: DirectoryState, planned: Planned, run_no: int, version: str) -> None:
    """Writes outcomes for all pending rows: every object is there. ``version``: as CHANGED."""
    for chunk in planned.chunks:
        if chunk.done < chunk.rows:
            ledger.write_outcomes(state, _outcomes(job, state, chunk, run_no, version), run_no, chunk.digest, 0)


def _outcomes(job: Job, state: DirectoryState, chunk: ChunkRef, run_no: int, version: str) -> bytes:
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.from_parquet(str(state.local(chunk.uri))).create_view("c")
    md5, digest = f"md5(key || '-' || ({version.format(n='id::BIGINT')}))", parquet.MANIFEST_DIGEST.format(m="c")
    table = con.sql(
        f"""
        SELECT row_id, source, key, id, 'copied' AS status, NULL AS error_class, 200 AS status_code, NULL AS message,
               false AS retryable, reason, attempt, 1 AS requests, 40000 AS size, {md5} AS md5, sha256({md5}) AS sha256,
               'image/jpeg' AS content_type, '"' || {md5} || '"' AS source_etag, NULL AS source_last_modified,
               '"' || {md5} || '"' AS dest_etag, $now AS started_at, $now AS recorded_at, $run_no AS run_no,
               $chunk AS chunk, $settings AS settings_digest, {digest} AS manifest_digest, 'body' AS checked_by,
               $now AS bytes_read_at, 0 AS consecutive_failures, 'digest' AS confirmed, NULL AS address,
               NULL AS copy_of, NULL AS attributes_sha256, NULL AS lost_attributes
        FROM c
        """,
        params={"now": datetime.now(UTC), "run_no": run_no, "chunk": chunk.digest, "settings": job.settings_digest()},
    ).to_arrow_table()
    return parquet.to_bytes(table.cast(parquet.OUTCOME_SCHEMA))


def write_list(path: Path, first: int, last: int, version: str, *, etags: bool) -> None:
    """Writes rows ``first`` to ``last`` (exclusive) as Parquet."""
    etag = f", md5(n || '-' || ({version.format(n='n')})) AS etag" if etags else ""
    duckdb.connect().execute(
        f"COPY (SELECT n::VARCHAR AS id, 'https://img.example/products/' || n || '/front.jpg' AS url {etag} "
        f"FROM range({first}, {last}) r(n)) TO '{path}' (FORMAT parquet)"
    )


def make_job(folder: Path) -> Job:
    there = folder / "there"
    there.mkdir()
    values = {"name": "nights", "manifest": str(folder / "list.parquet"), "mode": "delta"}
    return Job.model_validate({**values, "destination": {"uri": f"file://{there}/"}})


def one_night(rows: int, *, etags: bool) -> None:
    """Measures the first plan and a delta run after 1% changed: time, memory, and the rows to recheck."""
    with tempfile.TemporaryDirectory(prefix="ferry-nights-") as name:
        folder = Path(name)
        job, state = make_job(folder), DirectoryState(folder / "state")
        costs = {}
        for run_no, night, version in ((1, "first", "'1'"), (2, "night's", CHANGED)):
            write_list(folder / "list.parquet", 0, rows, version, etags=etags)
            planned = costs[f"{night} plan"] = apart(plan, job, state.root, run_no)
            settle(job, state, planned.answer, run_no, version)
            costs[f"{night} fold"] = apart(fold, job, state.root, run_no)
    what = "the list has ETags" if etags else "the list says nothing of its objects"
    print(f"{rows:,} rows, 1% changed, {what}; in the delta run {planned.answer.todo}:")
    for step, cost in costs.items():
        print(f"  {step:<14} {cost.seconds:6.1f} s  {cost.peak_mb:6,.0f} MB", flush=True)


def many_nights(rows: int, nights: int) -> None:
    """Measures delta runs before each of which 1% of the rows changed, 0.1% are new and 0.1% removed."""
    with tempfile.TemporaryDirectory(prefix="ferry-nights-") as name:
        folder = Path(name)
        job, state = make_job(folder), DirectoryState(folder / "state")
        print(f"\n{rows:,} rows, {nights} delta runs, before each 1% changed, 0.1% new and 0.1% removed; sizes in kB:")
        print("    run   plan s   fold s   to do  chunks" + "".join(f"{folder:>10}" for folder in FOLDERS))
        times: list[tuple[float, float]] = []
        for night in range(nights + 1):
            version = f"({{n}} + {night}) // 100"  # each delta run, another 1% of the rows gets a new one
            first = night * rows // 1000
            write_list(folder / "list.parquet", first, first + rows, version, etags=True)
            planned = apart(plan, job, state.root, night + 1)
            settle(job, state, planned.answer, night + 1, version)
            end = apart(fold, job, state.root, night + 1)
            times.append((planned.seconds, end.seconds))
            if night < 3 or night % 10 == 0:
                sizes = "".join(f"{_kb(state.root / folder):10,.0f}" for folder in FOLDERS)
                todo, chunks = sum(planned.answer.todo.values()), len(planned.answer.chunks)
                print(
                    f"  {night:>5} {planned.seconds:8.2f} {end.seconds:8.2f} {todo:7,} {chunks:7,}{sizes}", flush=True
                )
        sixth = max(1, nights // 6)
        for at, what in ((0, "plan"), (1, "fold")):
            early = statistics.median(pair[at] for pair in times[1 : sixth + 1])
            late = statistics.median(pair[at] for pair in times[-sixth:])
            print(f"  {what}: median of the first {sixth} delta runs {early:.2f} s, of the last {sixth} {late:.2f} s")


def _kb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nights", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the one night; 0: leave it out")
    parser.add_argument("--nights", type=int, default=60, help="one after the other; 0: leave them out")
    parser.add_argument("--rows-of-nights", type=int, default=100_000)
    given = parser.parse_args()
    if given.rows:
        one_night(given.rows, etags=True)
        one_night(given.rows, etags=False)
    if given.nights:
        many_nights(given.rows_of_nights, given.nights)


if __name__ == "__main__":
    main()
