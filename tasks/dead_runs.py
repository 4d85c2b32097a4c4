"""Runs whose process died: Prefect shows them as Running until somebody says otherwise.

A heartbeat cannot say it: it stops as well when the server was away, and would end live runs. Two things can: a process
of this machine that is not there any more, and a lease that its holder has not renewed in time (docs/decisions/0018).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

from ferry.state import LENGTH_S, RELEASED, RENEW_S, Holder, Lease, is_dead, this_process
from tasks import prefect_api
from tasks import run as runs

FLOWS = ["migrate", "verify"]
UNDER_WAY = frozenset({StateType.RUNNING, StateType.CANCELLING})  # a paused run, or one that starts, has no process
MOST = 200  # runs that are looked at
HOST, PID, PLACE, STARTED, TIMES = "ferry.host", "ferry.pid", "ferry.place", "ferry.started", "ferry.times"


def mark_dead_runs(own: UUID, times: int, tell: Callable[[str], None]) -> None:
    """At the start of a run: says at Prefect which process it is, and marks those whose process is not there any more.

    ``times``: how often Prefect has started this run; a retry in the UI is another process.
    """
    me = this_process("", 0.0)
    with prefect_api.best_effort(tell, "runs that died are not marked as Crashed") as client:
        client.update_flow_run_labels(
            own, {HOST: me.host, PID: me.pid, PLACE: me.boot_id, STARTED: me.process_start, TIMES: times}
        )
        under_way = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=sorted(UNDER_WAY)))
            ),
            limit=MOST,
        )
        for run in under_way:
            if run.id != own and has_died(run):
                message = f"process {run.labels[PID]} on {run.labels[HOST]} is gone; the next run of the job goes on"
                client.set_flow_run_state(run.id, Crashed(message=message))
                tell(f"{run.name} had died: its run at Prefect is marked as Crashed")


def has_died(run: FlowRun) -> bool:
    """Is the process that said that it is this run gone? False where none said so, or it is of another machine."""
    labels = run.labels
    if labels.get(TIMES) != run.run_count:  # another process has it now, and has not said so yet
        return False
    return is_dead(str(labels.get(PLACE, "")), int(labels.get(PID, 0)), str(labels.get(STARTED, "")))


def mark_predecessor(lease: Lease, own: UUID, tell: Callable[[str], None]) -> None:
    """The run whose lease was taken over is Crashed, where Prefect still has it under way; on any machine.

    Another server's runs are unknown here; that, and a server that is away, is no trouble of this run's.
    """
    for holder in (lease.took_over, runs.died):
        if holder is None or holder.flow_run in ("", str(own)):  # made without Prefect; a retry in the UI
            continue
        with prefect_api.best_effort(lambda _: None, "a run that died") as client:
            run = client.read_flow_run(UUID(holder.flow_run))
            if run.state is not None and is_left_behind(
                run.state.type, run.state.timestamp, holder, its_own=is_process(run, holder)
            ):
                client.set_flow_run_state(run.id, Crashed(message=reason(holder)))
                tell(f"{holder.run} (process {holder.pid} on {holder.host}) had died: it is marked as Crashed")


def is_process(run: FlowRun, holder: Holder) -> bool:
    """Is the holder of the lease the process that said last that it is this run?"""
    labels = run.labels
    said = (labels.get(HOST), labels.get(PID), labels.get(STARTED), labels.get(TIMES))
    return said == (holder.host, holder.pid, holder.process_start, run.run_count)


def is_left_behind(kind: StateType, since: datetime, holder: Holder, *, its_own: bool) -> bool:
    """Is this state at Prefect what a dead holder of the lease left there? ``its_own``: the holder said last that it is
    this run.

    | state | its own | since | |
    |---|---|---|---|
    | final, paused, or about to start once more | any | any | no |
    | under way | yes | any: clocks may be set back | yes |
    | under way | no | before the holder's last sign of life | yes |
    | under way | no | 30 s after that, or later | no: another process runs it again |

    Its last sign of life is by the holder's clock, the state's time by the server's; 30 s is what they may differ by.
    """
    if kind not in UNDER_WAY or holder.expires_at == RELEASED:
        return False
    if its_own:
        return True
    seen_alive = datetime.fromtimestamp(holder.expires_at - LENGTH_S, UTC)
    return (since - seen_alive).total_seconds() < RENEW_S


def reason(holder: Holder) -> str:
    """The state's message."""
    return (
        f"process {holder.pid} on {holder.host} is gone, or has not renewed its lease on the state in time. Another "
        "run took the lease over and goes on where this one stopped"
    )
