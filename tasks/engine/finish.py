"""The end of a run: fold the ledger, count, check the accounts, write the reports."""

from __future__ import annotations

from typing import Any

import duckdb

from tasks.engine import lease, ledger, missing
from tasks.engine.job import Job
from tasks.engine.night import figures
from tasks.engine.reading import select_failures, with_latest
from tasks.engine.same_bytes import find_same_bytes
from tasks.engine.seal import seal_json
from tasks.engine.state import State
from tasks.engine.summary import Counts, count

SHOWN_CHUNKS = 200
SHOWN_FAILURES = 200  # in the Prefect artifact; the report's file has them all


def finish(job: Job, state: State, run_no: int, token: str = "", *, swept: bool = False) -> dict[str, Any]:
    """Folds and counts. The answer: counts of the job, counts of this run, budget, the first failures.

    ``token``: of the run's lease. ``swept``: copies that left the list were dealt with, and nothing interrupted the
    run. Raises Fatal when another run has taken the lease, FerryError when planned is not the sum of the states.
    """
    if token:
        lease.check(state, token)
    folded = ledger.compact(state, run_no)

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> tuple[Counts, dict[str, int], list[dict[str, Any]]]:
        this_run = con.execute("SELECT status, count(*) FROM latest WHERE run_no = ? GROUP BY 1", [run_no]).fetchall()
        if job.mode == "delta":
            night.update(figures(con, state, manifest, run_no, to_directory=job.destination.uri.startswith("file://")))
        chunks.extend(by_chunk(con, run_no))
        counts = count(con, manifest)
        same.update(find_same_bytes(con, state, manifest, run_no, counts.planned) or {})
        if swept:
            missing.close(con, state, run_no)
        return counts, dict(this_run), select_failures(con, manifest, limit=SHOWN_FAILURES)[0]

    same: dict[str, Any] = {}
    night: dict[str, int] = {}
    chunks: list[dict[str, Any]] = []
    counts, this_run, failures = with_latest(state, work, state.spool_dir)
    counts.check()
    answer = {
        "run_no": run_no, "counts": counts.as_dict(), "this_run": this_run,
        "budget": job.budget(counts.planned - counts.duplicates), "failures": failures,
        "night": night or None, "same_bytes": {**same, "fail": job.duplicate_bodies == "fail"} if same else None,
    }  # fmt: skip
    state.write(f"reports/run-{run_no:06d}/summary.json", seal_json({**answer, "ledger": folded}))
    return {**answer, "chunk_lines": chunks}


def by_chunk(con: duckdb.DuckDBPyConnection, run_no: int) -> list[dict[str, Any]]:
    """Chunks that this run worked on, or that have failures: what became of the rows that they were the last to try.
    Those with most failures come first."""
    found = con.execute(
        """
        SELECT chunk, count(*) FILTER (status = 'copied'), count(*) FILTER (status = 'unchanged'),
               count(*) FILTER (status = 'skipped'), count(*) FILTER (status = 'failed') AS failed
        FROM latest WHERE chunk != '' GROUP BY chunk HAVING failed > 0 OR max(run_no) = ?
        ORDER BY failed DESC, chunk LIMIT ?
        """,
        [run_no, SHOWN_CHUNKS],
    ).fetchall()
    return [dict(zip(("chunk", "copied", "unchanged", "skipped", "failed"), line, strict=True)) for line in found]
