"""Cancelling, pausing and resuming a run at Prefect (docs/how-to/control-a-run.md): the run polls its own state.

Prefect records such a request as the run's state. For a worker's run it signals a cancellation to the process, and
nothing else. It never signals the process of `ferry run`. So each run reads its own state every few seconds.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import AwaitingRetry, Cancelled, Failed

from ferry import __version__
from ferry.core import UserError
from flows.deploying import rescue
from flows.running.signals import RESUME_HINT, Interrupts
from tasks import prefect_api
from tasks.dead_runs import TIMES

POLL_S = 3.0
STOP_REASONS = {
    StateType.CANCELLING: f"interrupted by a cancellation at Prefect{RESUME_HINT}",
    StateType.CANCELLED: f"interrupted by a cancellation at Prefect{RESUME_HINT}",
    StateType.FAILED: f"ended by Prefect because the pause was not resumed in time{RESUME_HINT}",
}
SUSPENDED = "interrupted by a pause at Prefect that ends this process; resume the run there to continue in another"
TAKEN_OVER = "interrupted because another process continues this run"


class Instruction(StrEnum):
    """What a run has to do."""

    CONTINUE = "continue"
    WAIT = "wait"  # start no object until it is resumed; the process waits and keeps its lease
    STOP = "stop"  # stop as after a Ctrl-C
    HAND_OVER = "hand_over"  # stop, and leave the state at Prefect to the process that takes the run over


def decide(kind: StateType, *, reschedule: bool, deployed: bool, taken: bool) -> Instruction:
    """Returns what the run's own state at Prefect asks of it.

    ``reschedule``: a resume gives the run to a worker, as after the UI's Pause (Prefect calls that Suspended).
    ``deployed``: the run has a deployment, so a worker would take it. ``taken``: another process has started it since.

    | state | reschedule | deployed | taken | instruction |
    |---|---|---|---|---|
    | any | any | any | yes | hand over: the state belongs to the other process |
    | Running | any | any | no | continue |
    | Paused | no | any | no | wait |
    | Paused | yes | no | no | wait: no other process would take it over |
    | Paused | yes | yes | no | hand over |
    | Scheduled, Pending | any | yes | no | hand over: it was resumed, and a worker takes it |
    | Scheduled, Pending | any | no | no | continue |
    | Cancelling, Cancelled | any | any | no | stop |
    | Failed | any | any | no | stop: Prefect sets this when a pause times out |
    | Completed, Crashed | any | any | no | continue: the state is wrong about a live run, and the lease decides |
    """
    if taken:
        return Instruction.HAND_OVER
    if kind in STOP_REASONS:
        return Instruction.STOP
    if kind is StateType.PAUSED:
        return Instruction.HAND_OVER if reschedule and deployed else Instruction.WAIT
    if kind in (StateType.SCHEDULED, StateType.PENDING) and deployed:
        return Instruction.HAND_OVER
    return Instruction.CONTINUE


def instruction_for(run: FlowRun, starts: int) -> Instruction:
    """Returns :func:`decide` for a run as Prefect has it. ``starts`` is Prefect's count when this process started.

    Each process records at its start which start of the run it is. Prefect's own count cannot show a second process: it
    also grows when a run resumes in the process that waits.
    """
    if run.state is None:
        return Instruction.CONTINUE
    reschedule = bool(run.state.state_details.pause_reschedule)
    taken = int(run.labels.get(TIMES, 0)) > starts
    return decide(run.state.type, reschedule=reschedule, deployed=run.deployment_id is not None, taken=taken)


class StateFollower:
    """Applies the run's state to this process. Pauses and resumes are logged."""

    def __init__(self, starts: int, warn: Callable[[str], None], interrupts: Interrupts) -> None:
        self._starts = starts
        self._warn = warn
        self._interrupts = interrupts
        self._paused = False
        self._pause: Callable[[bool], Any] | None = None
        self._lock = threading.Lock()

    def pause_by(self, pause: Callable[[bool], Any]) -> None:
        """Pause and resume the transfer by ``pause(True)`` and ``pause(False)`` from now on."""
        with self._lock:
            self._pause = pause
            if self._paused:
                pause(True)

    def follow(self, run: FlowRun) -> bool:
        """Apply the state of ``run`` once. Returns False if the run has to end."""
        instruction = instruction_for(run, self._starts)
        if instruction is Instruction.STOP:
            assert run.state is not None
            self._interrupts.request(STOP_REASONS[run.state.type])
        elif instruction is Instruction.HAND_OVER:
            assert run.state is not None
            self._interrupts.request(SUSPENDED if run.state.is_paused() else TAKEN_OVER)
        else:
            self._set_paused(instruction is Instruction.WAIT)
            return True
        return False

    def _set_paused(self, paused: bool) -> None:
        with self._lock:
            if paused is self._paused:
                return
            self._paused = paused
            if self._pause is not None:
                self._pause(paused)
        self._warn(
            "paused at Prefect: objects in flight finish, and no other starts until the run is resumed there"
            if paused
            else "resumed at Prefect: the run continues"
        )


@contextlib.contextmanager
def polling_state(
    own: UUID, starts: int, warn: Callable[[str], None], interrupts: Interrupts
) -> Iterator[StateFollower]:
    """Poll the run's own state until the block ends. An unreachable server changes nothing."""
    follower, done = StateFollower(starts, warn, interrupts), threading.Event()

    def poll() -> None:
        with prefect_api.polling_client() as client:
            while not done.wait(POLL_S):
                with contextlib.suppress(*prefect_api.API_ERRORS, ValueError):  # not Prefect's answer
                    if not follower.follow(client.read_flow_run(own)):
                        return

    # context variables hold Prefect's settings and the run that a log line belongs to
    thread = threading.Thread(target=contextvars.copy_context().run, args=(poll,), name="ferry-control", daemon=True)
    thread.start()
    try:
        yield follower
    finally:
        done.set()
        thread.join(POLL_S)


def check_start(starts: int, warn: Callable[[str], None]) -> None:
    """Log earlier starts of this run and a version mismatch. Raises UserError for a run that was started too often."""
    if starts > rescue.MOST:
        raise UserError(
            f"this run was started {starts} times, more than the limit of {rescue.MOST}: each time its process died or "
            "was terminated. Read the worker's log, then run the job again"
        )
    if starts > 1:
        warn(f"start {starts} of this run: it resumes where the previous process stopped")
    run = FlowRunContext.get()
    if words := version_mismatch(run.flow_run.deployment_version if run and run.flow_run else None):
        warn(words)


def version_mismatch(deployed: str | None, here: str = __version__) -> str | None:
    """Returns a warning if the deployment and this worker have different versions of Ferry, else None.

    | the deployment's version | this worker's Ferry | warning |
    |---|---|---|
    | none (`ferry run`), a digest (`prefect deploy`), a name | 0.2.0 | none |
    | 0.2.0 | 0.2.0 | none |
    | 0.1.0, 0.3.0 | 0.2.0 | both versions, and what to do |
    """
    if deployed == here or not re.fullmatch(r"\d+\.\d+\.\d+", deployed or ""):
        return None
    return (
        f"the deployment has version {deployed}, and this worker's Ferry is {here}. Update the worker if it is older, "
        "else run `ferry deploy` with the newer Ferry"
    )


def state_to_record(
    own: UUID, starts: int, end: State[Any], warn: Callable[[str], None], interrupts: Interrupts
) -> State[Any]:
    """Returns the final state to record, given the run's state at Prefect. Raises Pause to record none.

    None is recorded where another process takes the run over. That process may already have started, and Prefect shows
    the run as Running: the end of this process would overwrite its state.
    From Cancelling, Prefect accepts only Cancelled: after any other state the run would stay in Cancelling.
    ``starts`` is Prefect's count when this process started.
    """
    with prefect_api.best_effort(lambda _: None, "the end of a run") as client:
        run = client.read_flow_run(own)
        instruction = instruction_for(run, starts)
        was_leaving = interrupts.requested in (SUSPENDED, TAKEN_OVER) and instruction is not Instruction.STOP
        if instruction is Instruction.HAND_OVER or was_leaving:
            raise Pause(state=run.state)
        if instruction is Instruction.STOP and run.state is not None:
            return end if run.state.type is StateType.FAILED else Cancelled(message=end.message)
        terminated = interrupts.first is signal.SIGTERM
        ending = rescue.ending(
            end.type, terminated=terminated, deployed=run.deployment_id is not None, starts=run.run_count
        )
        result = (end.message or "").partition(RESUME_HINT)[0]
        if ending is rescue.Ending.GIVE_UP:
            return Failed(message=f"{result}. It was started {run.run_count} times and is not restarted automatically")
        if ending is rescue.Ending.CONTINUE:
            message = f"{result}; start {run.run_count + 1} of at most {rescue.MOST} resumes it"
            due = datetime.now(UTC) + timedelta(seconds=rescue.DELAY_S)
            client.set_flow_run_state(own, AwaitingRetry(scheduled_time=due, message=message), force=True)
            warn(f"{message} on a worker in about a minute")
            raise Pause(state=client.read_flow_run(own).state)
    return end
