"""A deployment's slot (`concurrency_limit`), held without ending the run when it is lost.

Prefect renews a slot's lease every 225 s, and when that fails it throws an exception into the flow's thread, wherever
that is: a server that was restarted (its leases are in memory), or away at the wrong moment, ends live runs, and some
of them hang. Which run of a job may move is for the lease in the state to decide (docs/decisions/0018): the slot only
lets others wait before they start. So it is renewed more often, and its loss is a line in the log.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from prefect.logging import get_logger

from tasks import prefect_api

RENEW_S = 60.0  # of 300: it outlasts an absence of the server's of four minutes


@contextlib.contextmanager
def held(lease_id: UUID, lease_duration: float, **_: Any) -> Iterator[None]:
    """Holds a slot until the block ends, with the flow (tasks/prefect_patches.py: hold_slots_with)."""
    done = threading.Event()
    context = contextvars.copy_context()  # Prefect's settings are in it
    thread = threading.Thread(
        target=context.run, args=(_renew, lease_id, lease_duration, done), name="ferry-slot", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(2.0)


def _renew(lease_id: UUID, lease_duration: float, done: threading.Event) -> None:
    tell = get_logger("ferry").info
    while not done.wait(RENEW_S):
        with prefect_api.best_effort(tell, "the slot of this run's deployment could not be renewed") as client:
            client.renew_concurrency_lease(lease_id=lease_id, lease_duration=lease_duration)
