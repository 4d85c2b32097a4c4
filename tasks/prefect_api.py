"""Access to Prefect's API, which may be unreachable. It only records runs, so its absence must not fail them.

Only this module knows the exceptions of its requests.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from ferry.core import UserError

API_ERRORS = (httpx.HTTPError, PrefectException)  # Prefect's error of an HTTP status is a subclass of httpx's
PATIENCE_S = 600.0
LOOK_S = 1.0
TIMEOUT_S = 10.0
MOST_TASKS = 200  # more than a run has active at a time
_given_up: contextlib.AbstractContextManager[Any] | None = None


def _new_client() -> SyncPrefectClient:
    """Returns a new client, not the flow's. A client that never connected fails at once, not after a minute.

    Settings that differ from those of the flow's client make Prefect create a new one.
    """
    return get_client(sync_client=True, httpx_settings={"timeout": TIMEOUT_S})


def is_reachable() -> bool:
    """Returns whether the API answers now."""
    with _new_client() as client:
        return client.api_healthcheck() is None


def wait(warn: Callable[[str], None], over: Callable[[], bool], max_pause_s: float = PATIENCE_S) -> bool:
    """Wait until the API answers. Returns False after ``max_pause_s``, or as soon as ``over`` returns True.

    Calls ``warn`` once if it has to wait. Without this wait, Prefect's client gives up after about a minute, and the
    run ends with an error although its work is done.
    """
    deadline = time.monotonic() + max_pause_s
    warned = False
    while not is_reachable():
        if time.monotonic() >= deadline or over():
            return False
        if not warned:
            warned = True
            warn(
                "the Prefect server does not answer. All outcomes are recorded in the state; waiting up to "
                f"{max_pause_s / 60:.0f} minutes to report the end of the run to the server (Ctrl-C ends the wait)"
            )
        time.sleep(LOOK_S)
    return True


def stop_retrying() -> None:
    """Try each request of this thread only once, not for a minute, until the process ends."""
    global _given_up
    _given_up = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})  # kept: its deletion would restore the setting
    _given_up.__enter__()


def active_tasks(client: SyncPrefectClient, flow_run: UUID) -> list[UUID]:
    """Returns the task runs of a flow run that Prefect shows as running or about to run, up to 200."""
    kinds = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED]
    found = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=kinds))),
        limit=MOST_TASKS,
    )
    return [task.id for task in found]


def end_tasks(client: SyncPrefectClient, tasks: Iterable[UUID], state: State[Any]) -> None:
    """Set the state of task runs. Those that Prefect has not recorded yet are left out."""
    for task in tasks:
        with contextlib.suppress(ObjectNotFound):
            client.set_task_run_state(task, state.model_copy(update={"id": uuid4()}), force=True)


@contextlib.contextmanager
def required_client() -> Iterator[SyncPrefectClient]:
    """Provide a client to a command that needs the API. Raises UserError for a refusal or no answer."""
    try:
        with _new_client() as client:
            yield client
    except httpx.HTTPStatusError as error:
        raise UserError(f"the Prefect server refused the request: {_detail(error.response)}") from None
    except API_ERRORS as error:
        why = str(error) or type(error).__name__
        raise UserError(f"the Prefect server does not answer ({why}). Check that it runs, and try again") from None


def _detail(answer: httpx.Response) -> str:
    """Returns the server's reason for a refusal; for 401 and 403, what to do."""
    if answer.status_code in (401, 403):
        return f"{answer.status_code}, authentication required; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
    try:
        body = answer.json()
        said = (body.get("detail") or body.get("exception_detail")) if isinstance(body, dict) else None
    except ValueError:
        said = None
    return f"{answer.status_code} {said or answer.reason_phrase}"


@contextlib.contextmanager
def polling_client() -> Iterator[SyncPrefectClient]:
    """Provide a client for repeated requests, each tried once. A request may raise one of API_ERRORS."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), _new_client() as client:
        yield client


@contextlib.contextmanager
def best_effort(warn: Callable[[str], None], what: str) -> Iterator[SyncPrefectClient]:
    """Provide a client for an optional request, named ``what``. If it fails, ``warn`` gets a message."""
    try:
        with _new_client() as client:
            yield client
    except API_ERRORS as error:
        warn(f"{what}: the request to Prefect's API failed ({type(error).__name__})")
