"""Runs that their infrastructure took away: which ones continue, and how often (docs/decisions/0035).

A run that is told to end by SIGTERM reschedules itself, as `control.last_word` does. A process that dies reports
nothing: its worker reports Crashed, and an automation at the Prefect server reschedules the run. A machine that dies
reports nothing at all: there the heartbeats end. One more automation bounds how often a process may die.
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

from flows.deploying.alerts import CONTINUED, OVER, TO_BEGIN, Patience, core, full_name, states, trigger, words

NAME = "AwaitingRetry"
DELAY_S = 60.0  # a machine that goes down stops its worker meanwhile
MOST = 20  # starts of one run
DEATHS, WITHIN = 3, timedelta(hours=1)  # a run whose process dies so often is Failed, which is an alarm


class Fate(StrEnum):
    """What becomes of a run at its end."""

    END = "end"
    CONTINUE = "continue"
    GIVE_UP = "give_up"


def fate(end: StateType, *, terminated: bool, deployed: bool, starts: int) -> Fate:
    """What becomes of a run of which Prefect asks nothing else.

    ``terminated``: its first signal was SIGTERM, and not Ctrl-C. ``deployed``: a worker can take it. ``starts``: how
    often a process has begun it.

    | it ends as | terminated | deployed | starts | fate |
    |---|---|---|---|---|
    | Completed, Failed | any | any | any | end: the signal came too late to change anything |
    | Cancelled | no | any | any | end: a Ctrl-C |
    | Cancelled | yes | no | any | end: `ferry run`, which no other process takes up |
    | Cancelled | yes | yes | fewer than 20 | continue |
    | Cancelled | yes | yes | 20 | give up: Failed, which is an alarm |
    """
    if end is not StateType.CANCELLED or not terminated or not deployed:
        return Fate.END
    return Fate.CONTINUE if starts < MOST else Fate.GIVE_UP


@dataclass(frozen=True, slots=True)
class Rescue:
    """An automation that acts on runs whose process died, before it is any project's."""

    name: str
    description: str
    trigger: EventTrigger
    action: ChangeFlowRunState

    def automation(self, project: str, *, enabled: bool) -> AutomationCore:
        """As Prefect takes it."""
        return core(full_name(self.name, project), self.description, self.trigger, [self.action], enabled=enabled)


def rescues(deployments: Collection[UUID], patience: Patience | None = None) -> list[Rescue]:
    """The automations of these deployments' runs: two continue them, the third one bounds how often.

    A worker reports a death twice, the second time up to 17 s later on a loaded machine. It would end the process that
    continues the run as Crashed, so that one begins later than that. A run that lives, and was not heard, reads that it
    is scheduled, and leaves (`control.decide`).
    """
    wait = patience or Patience()
    crashed = states("Crashed")
    return [
        Rescue(
            "Ferry: a run that died continues",
            "A run's process died (SIGKILL, out of memory, a lost node), as its worker or the next run reported: the "
            "run is scheduled again. Switch this off to leave such runs Crashed.",
            trigger(deployments, Posture.Proactive, after=crashed, expect=states(*CONTINUED), within_s=wait.rescue_s),
            _change(StateType.SCHEDULED, NAME, "its process died; another one continues it"),
        ),
        Rescue(
            "Ferry: a run whose machine is gone continues",
            f"No heartbeat from a run for {words(wait.lost_s)}: its machine is gone, or cut off from this server. The "
            "run is scheduled again, and waits for the lease of the process before it. Switch this off to leave such "
            "runs Running.",
            trigger(
                deployments,
                Posture.Proactive,
                after=states("heartbeat"),
                expect=states("heartbeat", *OVER, *TO_BEGIN),
                within_s=wait.lost_s,
            ),
            _change(
                StateType.SCHEDULED, NAME, f"no heartbeat for {words(wait.lost_s)}; another process continues the run"
            ),
        ),
        Rescue(
            "Ferry: a run that keeps dying is Failed",
            f"A run's process died {DEATHS} times within an hour: the run is Failed, and does not continue by itself.",
            trigger(deployments, Posture.Reactive, expect=crashed, within_s=WITHIN.total_seconds(), threshold=DEATHS),
            _change(
                StateType.FAILED,
                "Failed",
                f"its process died {DEATHS} times within an hour: it is not continued by itself. Read the worker's log",
            ),
        ),
    ]


def _change(state: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(type="change-flow-run-state", state=state, name=name, message=message, force=False)
