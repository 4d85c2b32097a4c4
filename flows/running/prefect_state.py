"""What is asked of a run at Prefect: to be cancelled, to pause, to go on (docs/how-to/control-a-run.md).

Prefect writes that down as the run's state. It tells the process of a worker's run of a cancellation, by a signal, and
of nothing else; that of `ferry run` it tells nothing. So a run reads its own state every few seconds, and obeys.
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
from flows.running import signals
from tasks import prefect_api
from tasks.dead_runs import TIMES

EVERY_S = 3.0
STOPS = {
    StateType.CANCELLING: "interrupted by a cancellation at Prefect; run the job again to go on where it stopped",
    StateType.CANCELLED: "interrupted by a cancellation at Prefect; run the job again to go on where it stopped",
    StateType.FAILED: "ended at Prefect, as a pause that nobody resumed in time; run the job again to go on",
}
LEFT = "interrupted by a pause at Prefect that ends this process; Resume there continues the run, in another one"
TAKEN = "interrupted because another process continues this run"


class Order(StrEnum):
    """What a run is to do."""

    GO_ON = "go_on"
    HOLD = "hold"  # no new objects until it goes on; the process waits, with its lease
    STOP = "stop"  # as after a Ctrl-C
    LEAVE = "leave"  # likewise, and the state at Prefect stays as it is: it is for the process that takes the run up


def decide(kind: StateType, *, reschedule: bool, deployed: bool, taken: bool) -> Order:
    """What the run's own state at Prefect asks of it.

    ``reschedule``: Resume hands the run to a worker, as after the UI's Pause (Prefect calls that Suspended).
    ``deployed``: it is a deployment's run, which a worker would take. ``taken``: another process has begun it since.

    | state | reschedule | deployed | taken | order |
    |---|---|---|---|---|
    | any | any | any | yes | leave: the state is what the other process says, or is asked |
    | Running | any | any | no | go on |
    | Paused | no | any | no | hold |
    | Paused | yes | no | no | hold: no other process would ever take it up |
    | Paused | yes | yes | no | leave |
    | Scheduled, Pending | any | yes | no | leave: it was resumed already, and a worker has it |
    | Scheduled, Pending | any | no | no | go on |
    | Cancelling, Cancelled | any | any | no | stop |
    | Failed | any | any | no | stop: what Prefect makes of a pause whose time is over |
    | Completed, Crashed | any | any | no | go on: others err about a run that lives, and the lease decides |
    """
    if taken:
        return Order.LEAVE
    if kind in STOPS:
        return Order.STOP
    if kind is StateType.PAUSED:
        return Order.LEAVE if reschedule and deployed else Order.HOLD
    if kind in (StateType.SCHEDULED, StateType.PENDING) and deployed:
        return Order.LEAVE
    return Order.GO_ON


def order_of(run: FlowRun, starts: int) -> Order:
    """As :func:`decide`, of a run as Prefect has it. ``starts``: Prefect's count when this process began.

    A process says at its beginning which start it is. Prefect's own count does not tell: it grows as well when a run
    is resumed in the process that waits.
    """
    if run.state is None:
        return Order.GO_ON
    reschedule = bool(run.state.state_details.pause_reschedule)
    taken = int(run.labels.get(TIMES, 0)) > starts
    return decide(run.state.type, reschedule=reschedule, deployed=run.deployment_id is not None, taken=taken)


class Control:
    """Obeys, in a thread of its own; ``tell`` hears of pauses."""

    def __init__(self, starts: int, tell: Callable[[str], None]) -> None:
        self._starts = starts
        self._tell = tell
        self._paused = False
        self._pause: Callable[[bool], Any] | None = None
        self._lock = threading.Lock()

    def pauses(self, pause: Callable[[bool], Any]) -> None:
        """From now on something moves, which ``pause(True)`` pauses and ``pause(False)`` lets go on."""
        with self._lock:
            self._pause = pause
            if self._paused:
                pause(True)

    def obey(self, run: FlowRun) -> bool:
        """One look. False: it is over."""
        order = order_of(run, self._starts)
        if order is Order.STOP:
            assert run.state is not None
            signals.interrupt(STOPS[run.state.type])
        elif order is Order.LEAVE:
            assert run.state is not None
            signals.interrupt(LEFT if run.state.is_paused() else TAKEN)
        else:
            self._hold(order is Order.HOLD)
            return True
        return False

    def _hold(self, paused: bool) -> None:
        with self._lock:
            if paused is self._paused:
                return
            self._paused = paused
            if self._pause is not None:
                self._pause(paused)
        self._tell(
            "paused at Prefect: no object begins until the run is resumed there; those in flight end"
            if paused
            else "resumed at Prefect: the run goes on"
        )


@contextlib.contextmanager
def polling_state(own: UUID, starts: int, tell: Callable[[str], None]) -> Iterator[Control]:
    """Reads the run's own state every few seconds until the end of the block. A server that is away asks nothing."""
    control, done = Control(starts, tell), threading.Event()

    def look() -> None:
        with prefect_api.polling() as client:
            while not done.wait(EVERY_S):
                with contextlib.suppress(*prefect_api.API_ERRORS, ValueError):  # an answer that is none of Prefect's
                    if not control.obey(client.read_flow_run(own)):
                        return

    # Prefect's settings, and the run that a log line belongs to, are in context variables
    thread = threading.Thread(target=contextvars.copy_context().run, args=(look,), name="ferry-control", daemon=True)
    thread.start()
    try:
        yield control
    finally:
        done.set()
        thread.join(EVERY_S)


def begins(starts: int, tell: Callable[[str], None]) -> None:
    """Says in the log that another process had this run before. Raises UserError for one that was started too often."""
    if starts > rescue.MOST:
        raise UserError(
            f"this run was started {starts} times, and {rescue.MOST} is the most: its process died or was taken away "
            "each time. Read the worker's log, then run the job again"
        )
    if starts > 1:
        tell(f"start {starts} of this run: it continues where the process before it stopped")
    run = FlowRunContext.get()
    if words := another_version(run.flow_run.deployment_version if run and run.flow_run else None):
        tell(words)


def another_version(deployed: str | None, here: str = __version__) -> str | None:
    """What is said of a deployment and a worker that have another Ferry each.

    | the deployment's version | this worker's Ferry | |
    |---|---|---|
    | none (`ferry run`), a digest (`prefect deploy`), a name | 0.2.0 | nothing |
    | 0.2.0 | 0.2.0 | nothing |
    | 0.1.0, 0.3.0 | 0.2.0 | both, with what to do |
    """
    if deployed == here or not re.fullmatch(r"\d+\.\d+\.\d+", deployed or ""):
        return None
    return (
        f"the deployment has version {deployed}, and this worker's Ferry is {here}. Update the worker if it is older, "
        "else run `ferry deploy` with the newer Ferry"
    )


def last_word(own: UUID, starts: int, end: State[Any], tell: Callable[[str], None]) -> State[Any]:
    """How the run ends, after what is asked of it by now; raises Pause where its end is for another process to tell.

    ``starts``: Prefect's count when this process began. Once it was to leave, another process may have begun the run
    already, which Prefect shows as Running: this one's end would replace what that one says.
    From Cancelling Prefect takes nothing but Cancelled: any other end would leave the run there for ever.
    """
    with prefect_api.best_effort(lambda _: None, "how a run ended") as client:
        run = client.read_flow_run(own)
        order = order_of(run, starts)
        was_to_leave = signals.asked() in (LEFT, TAKEN) and order is not Order.STOP
        if order is Order.LEAVE or was_to_leave:
            raise Pause(state=run.state)
        if order is Order.STOP and run.state is not None:
            return end if run.state.type is StateType.FAILED else Cancelled(message=end.message)
        terminated = signals.last_signal is signal.SIGTERM
        fate = rescue.fate(
            end.type, terminated=terminated, deployed=run.deployment_id is not None, starts=run.run_count
        )
        came_to = (end.message or "").partition(signals.AGAIN)[0]
        if fate is rescue.Fate.GIVE_UP:
            return Failed(message=f"{came_to}. It was started {run.run_count} times: it is not continued by itself")
        if fate is rescue.Fate.CONTINUE:
            message = f"{came_to}; start {run.run_count + 1} of at most {rescue.MOST} continues it"
            due = datetime.now(UTC) + timedelta(seconds=rescue.DELAY_S)
            client.set_flow_run_state(own, AwaitingRetry(scheduled_time=due, message=message), force=True)
            tell(f"{message}, in about a minute, where a worker takes it")
            raise Pause(state=client.read_flow_run(own).state)
    return end
