"""Detection of runs whose process died, which Prefect shows as Running until another process corrects it.

A missing heartbeat is not proof: heartbeats also stop while the server is unreachable. Two facts are proof: the process
no longer exists on this machine, or the lease's holder did not renew it in time (docs/decisions/0018).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Crashed

from ferry.state import LENGTH_S, RELEASED, RENEW_S, Holder, Lease, Seen, is_dead, this_process
from tasks import prefect_api
from tasks import run as runs

FLOWS = ["migrate", "verify"]
ACTIVE = frozenset({StateType.RUNNING, StateType.CANCELLING})  # a paused or starting run has no process
MOST = 200  # runs to check
HOST, PID, PLACE, STARTED, TIMES = "ferry.host", "ferry.pid", "ferry.place", "ferry.started", "ferry.times"


def mark_dead_runs(own: UUID, times: int, warn: Callable[[str], None]) -> None:
    """Record at Prefect which process executes this run, and mark runs whose process no longer exists as Crashed.

    ``times`` is how often Prefect has started this run: a retry in the UI is another process.
    """
    me = this_process("", 0.0)
    with prefect_api.best_effort(warn, "dead runs are not marked as Crashed") as client:
        client.update_flow_run_labels(
            own, {HOST: me.host, PID: me.pid, PLACE: me.boot_id, STARTED: me.process_start, TIMES: times}
        )
        active = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=sorted(ACTIVE)))),
            limit=MOST,
        )
        for run in active:
            if run.id != own and has_died(run):
                message = f"process {run.labels[PID]} on {run.labels[HOST]} died; the job's next run resumes"
                client.set_flow_run_state(run.id, Crashed(message=message))
                prefect_api.end_tasks(client, prefect_api.active_tasks(client, run.id), Crashed(message=message))
                warn(f"the process of {run.name} had died; the run is now marked as Crashed at Prefect")


def has_died(run: FlowRun) -> bool:
    """Returns whether the recorded process of a run no longer exists. False without a record, or on another machine."""
    labels = run.labels
    if labels.get(TIMES) != run.run_count:  # another process executes it now, and has not recorded that yet
        return False
    return is_dead(str(labels.get(PLACE, "")), int(labels.get(PID, 0)), str(labels.get(STARTED, "")))


def mark_predecessor(lease: Lease | Seen, own: UUID, warn: Callable[[str], None]) -> None:
    """Mark the run whose lease was taken over as Crashed if Prefect still shows it as running, on any machine.

    Does nothing for a run of another Prefect server, or if the server is unreachable.
    """
    for holder in (lease.took_over, runs.replaced_holder):
        if holder is None or holder.flow_run in ("", str(own)):  # a lease without Prefect, or a retry in the UI
            continue
        with prefect_api.best_effort(lambda _: None, "marking a dead run") as client:
            run = client.read_flow_run(UUID(holder.flow_run))
            if run.state is not None and is_stale(
                run.state.type, run.state.timestamp, holder, its_own=is_process(run, holder)
            ):
                state: State[Any] = Crashed(message=reason(holder))
                client.set_flow_run_state(run.id, state)
                prefect_api.end_tasks(client, prefect_api.active_tasks(client, run.id), state)
                warn(f"{holder.run} (process {holder.pid} on {holder.host}) had died; it is now marked as Crashed")


def is_process(run: FlowRun, holder: Holder) -> bool:
    """Returns whether the lease's holder is the process that Prefect has recorded last for this run."""
    labels = run.labels
    said = (labels.get(HOST), labels.get(PID), labels.get(STARTED), labels.get(TIMES))
    return said == (holder.host, holder.pid, holder.process_start, run.run_count)


def is_stale(kind: StateType, since: datetime, holder: Holder, *, its_own: bool) -> bool:
    """Returns whether a dead holder of the lease left this state at Prefect.

    ``its_own``: Prefect has recorded the holder last for this run.

    | state | its own | since | left behind |
    |---|---|---|---|
    | final, paused, or about to start again | any | any | no |
    | running | yes | any: clocks may be set back | yes |
    | running | no | before the holder's last renewal | yes |
    | running | no | less than 30 s after that | yes |
    | running | no | 30 s after that, or later | no: another process executes the run |

    The last renewal is measured by the holder's clock, the state's time by the server's. They may differ by 30 s.
    """
    if kind not in ACTIVE or holder.expires_at == RELEASED:
        return False
    if its_own:
        return True
    seen_alive = datetime.fromtimestamp(holder.expires_at - LENGTH_S, UTC)
    return (since - seen_alive).total_seconds() < RENEW_S


def reason(holder: Holder) -> str:
    """Returns the message for the state Crashed."""
    return (
        f"process {holder.pid} on {holder.host} died, or did not renew its lease on the state in time. Another run "
        "took the lease over and resumes where this run stopped"
    )
