"""Prefect's API, which may be away: it records what a run does, and is never a reason for the run to fail.

The only place that knows what asking it raises.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from ferry.core import UserError

API_ERRORS = (httpx.HTTPError, PrefectException)  # Prefect's own error of a status is httpx's
PATIENCE_S = 600.0
LOOK_S = 1.0
TIMEOUT_S = 10.0
_given_up: contextlib.AbstractContextManager[Any] | None = None


def _new_client() -> SyncPrefectClient:
    """Not the flow's: a client that has never been connected does not try for a minute before it says that nobody
    listens. Settings that differ from those of the flow's client make a new one."""
    return get_client(sync_client=True, httpx_settings={"timeout": TIMEOUT_S})


def answers() -> bool:
    """Whether it answers now."""
    with _new_client() as client:
        return client.api_healthcheck() is None


def wait(tell: Callable[[str], None], over: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    """Waits until it answers; False when it does not for ``patience_s``, or when ``over`` says that it is enough.

    ``tell`` hears why nothing happens. Without this Prefect's client gives up after about a minute, and the run ends
    with an error although its work is done.
    """
    deadline = time.monotonic() + patience_s
    told = False
    while not answers():
        if time.monotonic() >= deadline or over():
            return False
        if not told:
            told = True
            tell(
                "the Prefect server does not answer. What moved is recorded in the state; waiting up to "
                f"{patience_s / 60:.0f} minutes until the server can be told how the run ended (Ctrl-C: not longer)"
            )
        time.sleep(LOOK_S)
    return True


def stop_retrying() -> None:
    """From now on, and until the process ends, this thread's requests are tried once and not for a minute each."""
    global _given_up
    _given_up = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})  # kept: without it they are as before
    _given_up.__enter__()


@contextlib.contextmanager
def asking() -> Iterator[SyncPrefectClient]:
    """A client for a command that can do nothing without the API: raises UserError with the API's own words."""
    try:
        with _new_client() as client:
            yield client
    except httpx.HTTPStatusError as error:
        raise UserError(f"the Prefect server refuses it: {_detail(error.response)}") from None
    except API_ERRORS as error:
        why = str(error) or type(error).__name__
        raise UserError(f"the Prefect server does not answer ({why}). Look whether it is up, and try again") from None


def _detail(answer: httpx.Response) -> str:
    """What the server says of a refusal; 401 and 403 with what to do."""
    if answer.status_code in (401, 403):
        return f"{answer.status_code}, it asks who you are; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
    try:
        body = answer.json()
        said = (body.get("detail") or body.get("exception_detail")) if isinstance(body, dict) else None
    except ValueError:
        said = None
    return f"{answer.status_code} {said or answer.reason_phrase}"


@contextlib.contextmanager
def polling() -> Iterator[SyncPrefectClient]:
    """A client for a question that is asked again and again: each time is tried once, and may raise UNANSWERED."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), _new_client() as client:
        yield client


@contextlib.contextmanager
def best_effort(tell: Callable[[str], None], what: str) -> Iterator[SyncPrefectClient]:
    """A client for something that would be good to have at Prefect; where it is refused or lost, ``tell`` hears so."""
    try:
        with _new_client() as client:
            yield client
    except API_ERRORS as error:
        tell(f"{what}: Prefect's API does not take it ({type(error).__name__})")
