"""Planning as tasks: the first plan of a run, and the pass over what failed for a passing reason."""

from __future__ import annotations

from collections.abc import Sequence
from logging import INFO, WARNING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ferry.state import Planned
from tasks import task_count
from tasks.reporting.text import describe
from tasks.run import Run


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_chunks(run: Run, retry_failed: bool | list[str], limit: int | None) -> Planned:
    """Compares the manifest with the ledger and cuts chunks for what is to do."""
    task_count.one()
    classes: Sequence[str] = retry_failed if isinstance(retry_failed, list) else ()
    planned = run.plan("retry" if retry_failed else "plain", classes=classes, limit=limit)
    logger = get_run_logger()
    for line in describe(planned):
        logger.log(WARNING if line == planned.shorter else INFO, line)
    return planned


@task(name="plan-another-pass", task_run_name="plan-another-pass", cache_policy=NO_CACHE, persist_result=False)
def plan_pass(run: Run, *, retry: bool) -> Planned:
    """Cuts chunks for the retryable failures of this run, and for rows that a returned chunk did not settle."""
    task_count.one()
    return run.plan("pass" if retry else "repair")
