"""Automatic restarts of runs whose process was terminated or died, and their limits (docs/decisions/0035).

A run that receives SIGTERM reschedules itself (flows.running.prefect_state). A process that dies reports nothing: its
worker reports Crashed, and an automation at the Prefect server reschedules the run. If a machine dies, the run's
heartbeats stop, and another automation reschedules the run. A third automation limits how often a process may die.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.deploying.alerts import CONTINUED, OVER, TO_BEGIN, Delays, core, full_name, states, trigger, words

NAME = "AwaitingRetry"
DELAY_S = 60.0  # a machine that shuts down stops its worker in this time
MOST = 20  # starts of one run, at most
DEATHS, WITHIN = 3, timedelta(hours=1)  # a run whose process dies this often is Failed, which raises an alert


class Ending(StrEnum):
    """How an interrupted run ends at Prefect."""

    END = "end"
    CONTINUE = "continue"
    GIVE_UP = "give_up"


def ending(end: StateType, *, terminated: bool, deployed: bool, starts: int) -> Ending:
    """Returns how a run ends that has no other request at Prefect.

    ``terminated``: its first signal was SIGTERM, not Ctrl-C. ``deployed``: a worker can take it. ``starts``: how often
    a process has started it.

    | final state | terminated | deployed | starts | result |
    |---|---|---|---|---|
    | Completed, Failed | any | any | any | end: the signal came too late to change anything |
    | Cancelled | no | any | any | end: a Ctrl-C |
    | Cancelled | yes | no | any | end: no other process takes over a `ferry run` |
    | Cancelled | yes | yes | fewer than 20 | continue |
    | Cancelled | yes | yes | 20 | give up: Failed, which raises an alert |
    """
    if end is not StateType.CANCELLED or not terminated or not deployed:
        return Ending.END
    return Ending.CONTINUE if starts < MOST else Ending.GIVE_UP


@dataclass(frozen=True, slots=True)
class RestartAutomation:
    """An automation that acts on runs whose process died, still without a project."""

    name: str
    description: str
    trigger: EventTrigger
    action: ChangeFlowRunState

    def automation(self, project: str, *, enabled: bool) -> AutomationCore:
        """Returns Prefect's automation for a project."""
        return core(full_name(self.name, project), self.description, self.trigger, [self.action], enabled=enabled)


def restart_automations(deployments: Collection[UUID], delays: Delays | None = None) -> list[RestartAutomation]:
    """Returns the automations for the runs of these deployments: two restart them, the third limits the restarts.

    A worker reports a death twice, the second time up to 17 s later on a loaded machine. The second report would mark
    the restarted run as Crashed, so the restart waits longer than that. A live run whose heartbeats did not arrive
    reads that it is scheduled, and ends its process (flows.running.prefect_state).
    """
    wait = delays or Delays()
    crashed = states("Crashed")
    return [
        RestartAutomation(
            "Ferry: a run that died continues",
            "A run's process died (SIGKILL, out of memory, a lost node), as its worker or the next run reported. This "
            "schedules the run again. Switch it off to leave such runs Crashed.",
            trigger(deployments, Posture.Proactive, after=crashed, expect=states(*CONTINUED), within_s=wait.restart_s),
            _change(StateType.SCHEDULED, NAME, "the run's process died; another process continues the run"),
        ),
        RestartAutomation(
            "Ferry: a run whose machine is gone continues",
            f"No heartbeat from a run for {words(wait.machine_s)}: its machine is down, or cut off from this server. "
            "This schedules the run again; it then waits for the lease of the previous process. Switch it off to leave "
            "such runs Running.",
            trigger(
                deployments,
                Posture.Proactive,
                after=states("heartbeat"),
                expect=states("heartbeat", *OVER, *TO_BEGIN),
                within_s=wait.machine_s,
            ),
            _change(
                StateType.SCHEDULED,
                NAME,
                f"no heartbeat for {words(wait.machine_s)}; another process continues the run",
            ),
        ),
        RestartAutomation(
            "Ferry: a run that keeps dying is Failed",
            f"A run's process died {DEATHS} times within an hour. This sets the run to Failed and ends the restarts.",
            trigger(deployments, Posture.Reactive, expect=crashed, within_s=WITHIN.total_seconds(), threshold=DEATHS),
            _change(
                StateType.FAILED,
                "Failed",
                f"its process died {DEATHS} times within an hour; it is not restarted again. Read the worker's log",
            ),
        ),
    ]


def _change(state: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(type="change-flow-run-state", state=state, name=name, message=message, force=False)
