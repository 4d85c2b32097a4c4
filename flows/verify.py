"""The flow `verify`: read the destination back, compare it with the ledger, mark the objects to repair."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from ferry.core import FerryError, Progress
from ferry.cutover import PublicReport
from ferry.job import Job
from ferry.proof import Proof
from ferry.reconcile import check_choice
from flows.migrate import failure_message, run_name, wait_for_server
from flows.running import ending, prefect_state, signals
from flows.running.reporter import reporting
from tasks import prefect_patches
from tasks.dead_runs import mark_dead_runs, mark_predecessor
from tasks.job_file import with_absolute_paths
from tasks.reporting.last_run import record_end
from tasks.reporting.prefect_logs import configure_logging
from tasks.reporting.run_end import end_of
from tasks.reporting.run_view import RunView
from tasks.verify import (
    Verification,
    ask_public,
    begin_proof,
    compare_listing,
    draw,
    make_proof,
    open_check,
    parts,
    read_part,
)

public_report: PublicReport | None = None  # of this process's last check of public addresses
made_proof: Proof | None = None  # this process's last proof
last_check: Verification | None = None  # this process's last check of objects, if it was not ended early


@flow(
    name="verify",
    flow_run_name=run_name,
    description="Reads the destination back and compares it with the ledger.",
    persist_result=False,
)
def verify(
    job: Job,
    list_only: bool = False,
    sample: str | int | None = None,
    seed: int | None = None,
    wait: bool = False,
    public: bool = False,
    proof: bool = False,
) -> State[Any]:
    """Read the objects at the destination, all or a sample, and compare them with the ledger.

    Args:
        job: The job whose destination is read.
        list_only: Compare only the sizes and ETags of a listing. No object is read.
        sample: Read objects drawn at random: a share (`1%`) or a count (`500`). Default: all objects.
        seed: Draw the sample of an earlier run again; that run's message names its seed. Default: a new sample.
        wait: Wait while another run of the job holds the lease. Without it, this run fails and names the other run.
        public: Ask for the public addresses as visitors do, and read nothing at the destination.
        proof: Write a proof into the state that can be checked without Ferry (docs/how-to/proof.md).
    """
    configure_logging()
    interrupts = signals.current()
    interrupts.listen()
    state = run_check(with_absolute_paths(job, Path.cwd()), list_only, sample, seed, wait, proof, interrupts, public)
    record_end(job.name, "verify", state, get_run_logger())
    if not wait_for_server(interrupts):
        return state
    warn = get_run_logger().warning
    state = prefect_state.state_to_record(UUID(flow_run.id), flow_run.run_count, state, warn, interrupts)
    run_no, counts = (last_check.run_no, last_check.counts) if last_check else (None, {})
    ending.record(end_of(job.name, "verify", state, run_no, counts, {}), state)
    return state


def run_check(
    job: Job,
    list_only: bool,
    sample: str | int | None,
    seed: int | None,
    wait: bool,
    proof: bool,
    interrupts: signals.Interrupts,
    public: bool = False,
) -> State[Any]:
    """Verify under the lease, or the public addresses without it, and return the state that Prefect is to record."""
    global made_proof, last_check
    last_check = None
    warn, own = get_run_logger().warning, UUID(flow_run.id)
    try:
        check_choice(list_only, sample, seed, public)
        prefect_state.check_start(flow_run.run_count, warn)
        mark_dead_runs(own, flow_run.run_count, warn)
        if public:
            return _check_public(job, sample, seed, interrupts)
        with (
            prefect_state.polling_state(own, flow_run.run_count, warn, interrupts) as follower,
            open_check(job, flow_run.name or job.name, str(own), warn, wait=wait or flow_run.run_count > 1) as check,
            reporting(RunView(job.name, "verify", check.progress)),
            prefect_patches.without_tags(),
        ):
            follower.pause_by(check.progress.pause)
            mark_predecessor(check.lease, own, warn)
            if proof:
                begin_proof(check, job)
            if sample is not None:
                draw(check, sample, seed)
            if list_only:
                compare_listing(check)
            else:
                for part in parts(check):
                    read_part(check, part)
            check.end()
            last_check = check
            made_proof = made = make_proof(check, job, str(own), list_only=list_only) if proof else None
    except signals.Interrupted as interrupt:
        return Cancelled(message=str(interrupt).partition(";")[0])
    except FerryError as error:
        return Failed(message=failure_message(error))
    message = f"{made.message}. {check.message}" if made else check.message
    proven = check.proven and not (made and made.reasons)
    return Completed(message=message) if proven else Failed(message=message)


def _check_public(job: Job, sample: str | int | None, seed: int | None, interrupts: signals.Interrupts) -> State[Any]:
    """Check the public addresses and return the state that Prefect is to record."""
    global public_report
    progress = Progress()
    with (
        prefect_state.polling_state(
            UUID(flow_run.id), flow_run.run_count, get_run_logger().warning, interrupts
        ) as follower,
        reporting(RunView(job.name, "verify", progress)),
        prefect_patches.without_tags(),
    ):
        follower.pause_by(progress.pause)
        public_report = found = ask_public(job, progress, sample, seed)
    return Completed(message=found.message) if found.proven else Failed(message=found.message)
