"""The planning tasks: a run's first plan, and the plans of further passes over retryable failures."""

from __future__ import annotations

from logging import INFO, WARNING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ferry.state import Planned
from tasks.reporting.text import describe
from tasks.retry_selection import RetrySelection
from tasks.run import Run


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_chunks(run: Run, selection: RetrySelection, limit: int | None, *, at_random: bool = False) -> Planned:
    """Compare the manifest with the ledger and write chunks of the rows to process."""
    mode = "retry" if selection.only_failed else "plain"
    planned = run.plan(mode, classes=selection.classes, limit=limit, at_random=at_random)
    logger = get_run_logger()
    for line in describe(planned):
        logger.log(WARNING if line == planned.shorter else INFO, line)
    return planned


@task(name="plan-another-pass", task_run_name="plan-another-pass", cache_policy=NO_CACHE, persist_result=False)
def plan_pass(run: Run, *, retry: bool) -> Planned:
    """Write chunks of this run's retryable failures, and of rows without an outcome in chunks that returned."""
    return run.plan("pass" if retry else "repair")
