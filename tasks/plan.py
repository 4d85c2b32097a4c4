"""Planning as tasks: the first plan of a run, and the pass over what failed for a passing reason."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.engine.plan import Planned
from tasks.run import Run


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_chunks(run: Run, retry_failed: bool | list[str], limit: int | None) -> Planned:
    """Compares the manifest with the ledger and cuts chunks for what is to do."""
    classes: Sequence[str] = retry_failed if isinstance(retry_failed, list) else ()
    planned = run.plan("retry" if retry_failed else "plain", classes=classes, limit=limit)
    logger = get_run_logger()
    for line in describe(planned):
        logger.info(line)
    return planned


@task(name="plan-another-pass", cache_policy=NO_CACHE, persist_result=False)
def plan_pass(run: Run, *, retry: bool) -> Planned:
    """Cuts chunks for the retryable failures of this run, and for rows that a returned chunk did not settle."""
    return run.plan("pass" if retry else "repair")


def describe(planned: Planned) -> list[str]:
    """The plan in sentences, for logs and terminals."""
    lines = [
        f"{planned.rows:,} rows: {sum(planned.todo.values()) + planned.pending:,} to do, "
        f"{planned.settled:,} need nothing"
    ]
    if planned.recognised:
        lines.append("columns: " + ", ".join(f"{role} = {column}" for role, column in planned.recognised.items()))
    words = {"new": "new", "changed": "settings changed", "retry": "failed before", "repair": "to be repaired"}
    reasons = [f"{rows:,} {words.get(reason, reason)}" for reason, rows in planned.todo.items()]
    if planned.pending:
        reasons.append(f"{planned.pending:,} pending in chunks of earlier runs")
    if reasons:
        lines.append("to do: " + ", ".join(reasons))
    left_out = [
        f"{count:,} {what}"
        for count, what in (
            (planned.duplicates, "duplicates"),
            (planned.unusable, "unusable rows"),
            (planned.collisions, "rows with a key that another row wants"),
        )
        if count
    ]
    if left_out:
        lines.append("left out: " + ", ".join(left_out) + " (`ferry failures` lists them)")
    lines.append(f"existing objects are found {planned.existing}")
    return lines + planned.notes
