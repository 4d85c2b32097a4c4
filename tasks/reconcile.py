"""The accounts at the end of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.run import Run


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to. ``counts`` is the whole job's, ``this_run`` the rows that this run settled."""

    run_no: int
    counts: dict[str, Any]
    this_run: dict[str, int]
    budget: int
    failures: list[dict[str, Any]]
    chunks: int
    cached: int
    limited: bool
    seconds: float
    bytes: int
    rate: float  # rows a second between the first outcome and the last
    stopped: str  # why the run ended early; "" when it did not
    why_pending: str

    @property
    def exit_code(self) -> int:
        """SEMANTICS: results of a run.

        | pending | failed | asked with --limit | code |
        |---|---|---|---|
        | 0 | within budget | any | 0 |
        | some | within budget | yes, and it was reached | 0 |
        | some | any | no | 1 |
        | any | over budget | any | 1 |
        """
        pending_is_fine = not self.counts["pending"] or (self.limited and not self.stopped)
        return 0 if pending_is_fine and self.counts["failed"] <= self.budget else 1

    @property
    def message(self) -> str:
        """One line for the flow run's state."""
        run = self.this_run
        done = ", ".join(
            f"{run[status]:,} {status}" for status in ("copied", "unchanged", "skipped", "failed") if run.get(status)
        )
        c = self.counts
        there = c["copied"] + c["unchanged"]
        line = f"this run: {done or 'nothing to do'}; in all {there:,} of {c['planned']:,} are there"
        if c["failed"]:
            line += f", {c['failed']:,} failed (budget {self.budget:,})"
        if c["pending"]:
            line += f", {c['pending']:,} pending"
        why = self.stopped or (self.why_pending if c["pending"] else "")
        return f"{line}. {why}" if why else line


@task(name="reconcile", cache_policy=NO_CACHE, persist_result=False)
def reconcile(run: Run) -> Report:
    """Folds the ledger and checks planned = copied + unchanged + skipped + failed + pending.

    Raises FerryError when it does not hold.
    """
    answer = json.loads(run.child("finish", run_no=run.run_no))
    snapshot = run.runtime.progress.snapshot()
    steady = run.runtime.progress.steady_s
    return Report(
        **answer,
        chunks=len(run.returned) + len(run.incomplete),
        cached=run.cached,
        limited=run.runtime.limit_reached,
        seconds=snapshot.elapsed_s,
        bytes=snapshot.bytes,
        rate=snapshot.done / steady if steady > 0 else 0.0,
        stopped=run.runtime.stop_reason,
        why_pending=next(iter(run.incomplete.values()), ""),
    )
