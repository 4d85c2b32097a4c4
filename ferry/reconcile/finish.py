"""The end of a run: fold the ledger, count, check the accounts, write the reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ferry.job import Job
from ferry.planning import find_gone
from ferry.reconcile.prune import DELETED
from ferry.reconcile.same_bytes import find_same_bytes
from ferry.state import (
    HISTORY_FOLDER,
    Counts,
    State,
    check_lease,
    close_missing,
    compact_ledger,
    count,
    encode_checked_json,
    run_of,
    select_failures,
    with_latest,
)

if TYPE_CHECKING:
    import duckdb

SHOWN_CHUNKS = 200
SHOWN_FAILURES = 200  # in the Prefect artifact; the report's file has them all


def finish_run(job: Job, state: State, run_no: int, token: str = "", *, swept: bool = False) -> dict[str, Any]:
    """Folds and counts. The answer: counts of the job, counts of this run, budget, the first failures.

    ``token``: of the run's lease. ``swept``: copies that left the list were dealt with, and nothing interrupted the
    run. Raises Fatal when another run has taken the lease, FerryError when planned is not the sum of the states.
    """
    if token:
        check_lease(state, token)
    folded = compact_ledger(state, run_no)

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> tuple[Counts, dict[str, int], list[dict[str, Any]]]:
        this_run = con.execute("SELECT status, count(*) FROM latest WHERE run_no = ? GROUP BY 1", [run_no]).fetchall()
        if job.mode == "delta":
            night.update(
                delta_figures(con, state, manifest, run_no, to_directory=job.destination.uri.startswith("file://"))
            )
        chunks.extend(by_chunk(con, run_no))
        counts = count(con, manifest)
        same.update(find_same_bytes(con, state, manifest, run_no, counts.planned) or {})
        if swept:
            close_missing(con, state, run_no)
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
    state.write(f"reports/run-{run_no:06d}/summary.json", encode_checked_json({**answer, "ledger": folded}))
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


NAMES = ("new", "changed", "unchanged", "failed", "failed_again", "requests", "bytes_saved", "gone", "deleted")


def delta_figures(
    con: duckdb.DuckDBPyConnection, state: State, manifest: str, run_no: int, *, to_directory: bool
) -> dict[str, int]:
    """Rows that were new, replaced, and looked at for nothing; failures, and those that are not the first of their
    row; requests; the bytes of what was looked at and not read; copies that belong to no row of the list any more, and
    those that were deleted. ``latest``: the folded ledger."""
    found = con.execute(
        """
        SELECT count(*) FILTER (status = 'copied'), count(*) FILTER (status = 'unchanged'),
               count(*) FILTER (status = 'failed'), count(*) FILTER (status = 'failed' AND consecutive_failures > 1),
               coalesce(sum(requests), 0),
               coalesce(sum(size) FILTER (status = 'unchanged' AND checked_by IN ('condition', 'head', 'size')), 0)
        FROM latest WHERE run_no = ?
        """,
        [run_no],
    ).fetchall()
    copied, unchanged, failed, again, requests, saved = map(int, found[0])
    changed = 0
    if names := [name for name in state.list(HISTORY_FOLDER) if run_of(name) == run_no]:
        # With what a killed run before it replaced, which no fold had noted yet; and a row that came back is new.
        (changed,) = con.execute(
            """
            SELECT count(*) FROM latest SEMI JOIN read_parquet($names) h ON h.row_id = latest.row_id
                AND h.replaced_by = $run_no WHERE run_no = $run_no AND status = 'copied' AND reason <> 'new'
            """,
            {"names": [str(state.local(name)) for name in names], "run_no": run_no},
        ).fetchall()[0]
    gone, _ = find_gone(con, manifest, to_directory=to_directory)
    (deleted,) = con.execute(
        "SELECT count(*) FROM latest WHERE run_no = ? AND status = 'removed' AND message = ?", [run_no, DELETED]
    ).fetchall()[0]
    values = (copied - changed, changed, unchanged, failed, again, requests, saved, gone, int(deleted))
    return dict(zip(NAMES, values, strict=True))
