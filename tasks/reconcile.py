"""The tasks at the end of a run: deletion of removed copies, folding of the ledger, the report."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from ferry.core import Stopped
from tasks.reporting.text import SHORTEST_S, Report
from tasks.run import Run

MOST_LINES = 200
MOST_CHANGES = 50


@task(name="delete-removed", task_run_name="delete-removed", cache_policy=NO_CACHE, persist_result=False)
def delete_removed(run: Run) -> None:
    """Delete the copies whose rows were removed from the manifest, after everything else in a complete delta run."""
    while run.runtime.paused and not run.runtime.stopping:
        run.runtime.sleep(1.0)
    with contextlib.suppress(Stopped):
        run.prune()


@task(name="reconcile", task_run_name="reconcile", cache_policy=NO_CACHE, persist_result=False)
def reconcile(run: Run) -> Report:
    """Fold the ledger, check planned = copied + unchanged + skipped + failed + pending, and return the report.

    Raises FerryError if the sum does not hold, and Fatal if another run has taken the lease.
    """
    run.runtime.check_lease()
    pruned = run.pruned is not None and not run.runtime.stopping
    snapshot, steady = run.runtime.progress.snapshot(), run.runtime.progress.steady_s
    rate = snapshot.done / steady if steady >= SHORTEST_S else 0.0
    answer = json.loads(
        run.child(
            "finish", run_no=run.run_no, token=run.lease.token, pruned=pruned,
            progress={"seconds": snapshot.elapsed_s, "bytes": snapshot.bytes, "rate": rate},
            whole=not run.runtime.limit_reached and not run.runtime.stopping,
        )
    )  # fmt: skip
    if not answer["counts"]["pending"]:
        run.runtime.abandon_uploads()
    answer["chunk_lines"] = chunk_lines(run, answer["chunk_lines"])
    return Report(
        **answer,
        chunks=len(run.returned) + len(run.incomplete),
        cached=run.cached,
        limited=run.runtime.limit_reached,
        limit_option="--sample" if run.at_random else "--limit",
        stopped=run.runtime.stop_reason,
        why_pending=next(iter(run.incomplete.values()), ""),
        pruned=run.pruned,
        limit_changes=run.pool.limit_changes[-MOST_CHANGES:],
    )


def chunk_lines(run: Run, counted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a line for each chunk, with its file; chunks with pending rows come first."""
    counts = {line["chunk"]: line for line in counted}
    found = []
    for digest in [*list(run.incomplete)[:MOST_LINES], *(name for name in counts if name not in run.incomplete)]:
        numbers = counts.get(digest, {"copied": 0, "unchanged": 0, "skipped": 0, "failed": 0})
        found.append(
            {
                **numbers, "chunk": digest, "pending": run.incomplete.get(digest, ""),
                "task_run": run.task_runs.get(digest, ""), "file": run.file(f"chunks/{digest}.parquet"),
            }
        )  # fmt: skip
    return found[:MOST_LINES]
