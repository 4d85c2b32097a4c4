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

UNANSWERED = (httpx.HTTPError, PrefectException)  # Prefect's own error of a status is httpx's
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


def give_up() -> None:
    """From now on, and until the process ends, this thread's requests are tried once and not for a minute each."""
    global _given_up
    _given_up = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})  # kept: without it they are as before
    _given_up.__enter__()


@contextlib.contextmanager
def courtesy(tell: Callable[[str], None], what: str) -> Iterator[SyncPrefectClient]:
    """A client for something that would be good to have at Prefect; where it is refused or lost, ``tell`` hears so."""
    try:
        with _new_client() as client:
            yield client
    except UNANSWERED as error:
        tell(f"{what}: Prefect's API does not take it ({type(error).__name__})")
