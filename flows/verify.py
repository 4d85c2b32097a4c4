"""Verification: read the destination back, compare it with the ledger, mark what is to be repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows import signals
from flows.migrate import await_server, failure, run_name
from flows.watch import showing
from tasks import policies
from tasks.crashed import look_around, mark_predecessor
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
    signals.listen()
    state = run_check(anchored(job, Path.cwd()), list_only)
    await_server()
    return state


def run_check(job: Job, list_only: bool) -> State[Any]:
    """The verification under its lease; the state that Prefect is to record."""
    tell, own = get_run_logger().warning, UUID(flow_run.id)
    try:
        look_around(own, flow_run.run_count, tell)
        with (
            open_check(job, flow_run.name or job.name, str(own), tell) as check,
            showing(check.progress),
            policies.untagged(),
        ):
            mark_predecessor(check.lease, own, tell)
            bounds = parts(check)
            if list_only:
                compare_listing(check, bounds)
            else:
                for part in bounds:
                    read_part(check, part)
    except signals.Interrupted as interrupt:
        return Cancelled(message=str(interrupt).partition(";")[0])
    except FerryError as error:
        return Failed(message=failure(error))
    return Completed(message=check.message) if check.proven else Failed(message=check.message)
