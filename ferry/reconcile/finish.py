"""The end of a run: folds the ledger, counts rows, checks their sum and writes the report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ferry.job import Job
from ferry.planning import find_removed
from ferry.reconcile.prune import DELETED
from ferry.reconcile.same_bytes import find_same_bytes
from ferry.state import (
    HISTORY_FOLDER,
    FailureFilter,
    State,
    check_lease,
    close_missing,
    compact_ledger,
    count,
    count_deduped,
    encode_checked_json,
    folded_ledger,
    read_predicted,
    run_of,
    select_failures,
)

if TYPE_CHECKING:
    import duckdb

SHOWN_CHUNKS = 200
SHOWN_FAILURES = 200  # in the Prefect artifact; `ferry failures` lists all


def finish_run(
    job: Job,
    state: State,
    run_no: int,
    token: str = "",
    *,
    pruned: bool = False,
    progress: dict[str, Any] | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """Folds the ledger, writes reports/run-N/summary.json, and returns its content without the ledger's files.

    The result has the counts of the job and of this run, the failure budget, and the first failures. It also has the
    figures of a delta run, rows with the same bytes, and a line per chunk. ``token`` is of the run's lease. ``pruned``
    means that the run was to prune and was not interrupted. ``progress`` has the run's ``seconds``, ``bytes`` and
    ``rate``. They are compared with the prediction of `ferry check` if the run was ``whole``: to its end, with no
    limit.

    Raises Fatal when another run has taken the lease, and FerryError when the counts do not add up.
    """
    if token:
        check_lease(state, token)
    folded = compact_ledger(state, run_no)
    to_directory = job.destination.uri.startswith("file://")
    with folded_ledger(state, state.spool_dir) as con:
        this_run = con.execute("SELECT status, count(*) FROM latest WHERE run_no = ? GROUP BY 1", [run_no]).fetchall()
        delta = delta_figures(con, state, run_no, to_directory=to_directory) if job.mode == "delta" else None
        chunks = by_chunk(con, run_no)
        counts = count(con)
        deduped = count_deduped(con, run_no)
        same_bytes = find_same_bytes(con, state, run_no, counts.planned)
        if pruned:
            close_missing(con, state, run_no)
        failures = select_failures(con, FailureFilter(), SHOWN_FAILURES)
    counts.check()
    expected = read_predicted(state) if whole else None
    is_of_this_run = expected is not None and expected.is_of(sum(rows for _, rows in this_run))
    report = {
        "run_no": run_no, "counts": counts.as_dict(), "this_run": dict(this_run),
        "budget": job.budget(counts.planned - counts.duplicates), "budget_setting": str(job.failure_budget),
        "failures": failures, "delta": delta, "deduped": deduped, **(progress or {}),
        "predicted": (expected.low_s, expected.high_s) if expected is not None and is_of_this_run else None,
        "same_bytes": {**same_bytes, "fail": job.duplicate_bodies == "fail"} if same_bytes else None,
    }  # fmt: skip
    now = datetime.now(UTC).isoformat(timespec="seconds")
    state.write(
        f"reports/run-{run_no:06d}/summary.json", encode_checked_json({**report, "ledger": folded, "ended_at": now})
    )
    return {**report, "chunk_lines": chunks}


def by_chunk(con: duckdb.DuckDBPyConnection, run_no: int) -> list[dict[str, Any]]:
    """Returns the counts of each chunk that this run worked on or that has failures, with the most failures first.

    A row counts for the chunk of its latest outcome.
    """
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


FIGURES = ("new", "changed", "unchanged", "failed", "failed_again", "requests", "bytes_saved", "removed", "deleted")


def delta_figures(con: duckdb.DuckDBPyConnection, state: State, run_no: int, *, to_directory: bool) -> dict[str, int]:
    """Returns the figures of a delta run.

    | figure | meaning |
    |---|---|
    | `new`, `changed` | rows copied for the first time, and copied again |
    | `unchanged` | rows that were rechecked and had not changed |
    | `failed`, `failed_again` | failed rows, and those that had also failed in the run before |
    | `requests` | requests to the sources |
    | `bytes_saved` | bytes of rechecked copies that were not read again |
    | `removed` | copies whose rows were removed from the manifest |
    | `deleted` | such copies that this run deleted |
    """
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
    copied, unchanged, failed, failed_again, requests, saved = map(int, found[0])
    changed = 0
    if names := [name for name in state.list(HISTORY_FOLDER) if run_of(name) == run_no]:
        # The history may also have copies that an earlier, killed run replaced: only rows of this run count. A row
        # that was removed and is in the manifest again is new.
        (changed,) = con.execute(
            """
            SELECT count(*) FROM latest SEMI JOIN read_parquet($names) h ON h.row_id = latest.row_id
                AND h.replaced_by = $run_no WHERE run_no = $run_no AND status = 'copied' AND reason <> 'new'
            """,
            {"names": [str(state.local(name)) for name in names], "run_no": run_no},
        ).fetchall()[0]
    removed = find_removed(con, to_directory=to_directory)
    (deleted,) = con.execute(
        "SELECT count(*) FROM latest WHERE run_no = ? AND status = 'removed' AND message = ?", [run_no, DELETED]
    ).fetchall()[0]
    values = (copied - changed, changed, unchanged, failed, failed_again, requests, saved, removed, int(deleted))
    return dict(zip(FIGURES, values, strict=True))
