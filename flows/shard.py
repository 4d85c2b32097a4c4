"""The flow `shard`: transfers a part of a run's plan on another machine. Only the flow `migrate` submits it."""

from __future__ import annotations

import contextlib
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from ferry.core import FerryError, Stopped, limit_arrow_memory

limit_arrow_memory(with_numpy=True)  # before the imports that load Arrow

from ferry.job import Job
from flows.migrate import failure_message
from flows.running import prefect_state, signals
from tasks import prefect_api, prefect_patches
from tasks.reporting.prefect_logs import configure_logging
from tasks.result_store import storing_results_in
from tasks.run import open_shard
from tasks.shards.member import OVER, Member
from tasks.shards.prefect_runs import check_clock
from tasks.state_location import state_of
from tasks.transfer import transfer_all


@flow(
    name="shard",
    description="Transfers a part of a run's plan on another machine. The run of `migrate` submits it.",
    task_runner=cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=1000)),
    persist_result=False,
)
def shard(job: Job, run_no: int, token: str, number: int, attempt: int) -> State[Any]:
    """Transfer a shard.

    Args:
        job: The job of the run. Credentials and headers are resolved on this machine.
        run_no: The number of the run.
        token: The token of the run's lease.
        number: The number of the shard.
        attempt: The number of the attempt at it.
    """
    configure_logging()
    interrupts = signals.current()
    interrupts.listen()
    try:
        return run_shard(job, run_no, token, number, attempt, interrupts)
    except (signals.Interrupted, Stopped) as interrupt:
        return Cancelled(message=f"nothing was copied: {interrupt}")
    except FerryError as error:
        return Failed(message=failure_message(error))


def run_shard(
    job: Job, run_no: int, token: str, number: int, attempt: int, interrupts: signals.Interrupts
) -> State[Any]:
    """Returns the final state. Raises Stopped for an attempt that does not count, and other FerryErrors."""
    warn, state = get_run_logger().warning, state_of(job)
    with contextlib.suppress(*prefect_api.API_ERRORS), prefect_api.polling_client() as client:
        check_clock(client)
    member = Member(job, state, run_no, token, number, attempt)
    plan = member.claim()
    with (
        prefect_state.polling_state(UUID(flow_run.id), flow_run.run_count, warn, interrupts) as follower,
        member.serving(lambda: "was to leave" if interrupts.first is not None else ""),
        open_shard(job, state, member.seen, run_no, member) as run,
        interrupts.stopping_by(run.stop),
        prefect_patches.without_tags(),
        storing_results_in(run.state),
    ):
        member.attach(run)
        follower.pause_by(run.runtime.pause)
        run.number_chunks(plan.refs, plan.first, plan.total)
        run.runtime.progress.start(sum(ref.rows - ref.done for ref in plan.refs))
        transfer_all(run, plan.refs)
    done = f"{len(run.returned)} of {len(plan.refs)} chunks, {run.cached} of them Cached"
    if member.seen.lost:
        return Cancelled(message=f"{OVER}; {done}")
    if run.errors:
        return Failed(message=failure_message(run.errors[0]))
    if run.runtime.stopping:
        return Cancelled(message=f"{run.runtime.stop_reason}; {done}")
    return Completed(message=done)
