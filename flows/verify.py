"""Verification: read the destination back, compare it with the ledger, mark what is to be repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from ferry.core import FerryError
from ferry.job import Job
from flows.migrate import await_server, failure, run_name
from flows.running import prefect_state, signals
from flows.running.reporter import showing
from tasks import prefect_patches
from tasks.dead_runs import mark_dead_runs, mark_predecessor
from tasks.reporting.prefect_logs import tidy_logs
from tasks.reporting.run_view import RunView
from tasks.secrets import anchored
from tasks.verify import check_choice, compare_listing, draw, open_check, parts, read_part


@flow(
    name="verify",
    flow_run_name=run_name,
    description="Reads the destination back and compares it with the ledger.",
    persist_result=False,
)
def verify(
    job: Job, list_only: bool = False, sample: str | int | None = None, seed: int | None = None, wait: bool = False
) -> State[Any]:
    """Reads the objects at the destination back, all or a sample, and compares them with the ledger.

    Args:
        job: The job whose destination is read.
        list_only: Compare sizes and ETags from a listing alone; read no object.
        sample: Read some objects, drawn at random: a share (`1%`) or a count (`500`). Default: all.
        seed: Draw the sample of an earlier run again, which named its seed. Default: another one each time.
        wait: While another run of the job is on, wait for its end; else this one fails at once and names it.
    """
    tidy_logs()
    signals.listen()
    state = run_check(anchored(job, Path.cwd()), list_only, sample, seed, wait)
    if not await_server():
        return state
    return prefect_state.last_word(UUID(flow_run.id), flow_run.run_count, state, get_run_logger().warning)


def run_check(job: Job, list_only: bool, sample: str | int | None, seed: int | None, wait: bool) -> State[Any]:
    """The verification under its lease; the state that Prefect is to record."""
    tell, own = get_run_logger().warning, UUID(flow_run.id)
    try:
        check_choice(list_only, sample, seed)
        prefect_state.begins(flow_run.run_count, tell)
        mark_dead_runs(own, flow_run.run_count, tell)
        with (
            prefect_state.polling_state(own, flow_run.run_count, tell) as orders,
            open_check(job, flow_run.name or job.name, str(own), tell, wait=wait or flow_run.run_count > 1) as check,
            showing(RunView(job.name, "verify", check.progress)),
            prefect_patches.without_tags(),
        ):
            orders.pauses(check.progress.pause)
            mark_predecessor(check.lease, own, tell)
            if sample is not None:
                draw(check, sample, seed)
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
