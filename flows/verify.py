"""Verification: read the destination back, compare it with the ledger, mark what is to be repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.migrate import failure, run_name
from flows.watch import showing
from tasks import policies
from tasks.engine.errors import FerryError
from tasks.engine.job import Job
from tasks.logs import tidy_logs
from tasks.references import anchored
from tasks.verify import compare_listing, open_check, parts, read_part


@flow(
    name="verify",
    flow_run_name=run_name,
    description="Reads the destination back and compares it with the ledger.",
    persist_result=False,
)
def verify(job: Job, list_only: bool = False) -> State[Any]:
    """Reads every object at the destination back and compares it with the ledger.

    Args:
        job: The job whose destination is read.
        list_only: Compare sizes and ETags from a listing alone; read no object.
    """
    tidy_logs()
    job = anchored(job, Path.cwd())
    try:
        with (
            open_check(job, flow_run.name or job.name, str(flow_run.id or ""), get_run_logger().warning) as check,
            showing(check.progress),
            policies.untagged(),
        ):
            bounds = parts(check)
            if list_only:
                compare_listing(check, bounds)
            else:
                for part in bounds:
                    read_part(check, part)
    except FerryError as error:
        return Failed(message=failure(error))
    return Completed(message=check.message) if check.proven else Failed(message=check.message)
