"""A deployment's concurrency slot (`concurrency_limit`), whose loss does not end the run.

Prefect renews a slot's lease every 225 s. If a renewal fails, Prefect raises an exception in the flow's thread, at any
line: a server that restarts (its leases are in memory) or is unreachable for a moment ends live runs, and some hang.
The slot only makes later runs wait; the lease in the state decides which run of a job may write (docs/decisions/0018).
So Ferry renews the slot every minute, and logs a failed renewal.
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

RENEW_S = 60.0  # the lease lasts 300 s, so the slot survives four minutes without the server


@contextlib.contextmanager
def held(lease_id: UUID, lease_duration: float, **_: Any) -> Iterator[None]:
    """Hold a slot until the block ends. tasks.prefect_patches.hold_slots_with makes Prefect call this."""
    done = threading.Event()
    context = contextvars.copy_context()  # has Prefect's settings
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
    log = get_logger("ferry").info
    while not done.wait(RENEW_S):
        with prefect_api.best_effort(log, "the concurrency slot of this run's deployment was not renewed") as client:
            client.renew_concurrency_lease(lease_id=lease_id, lease_duration=lease_duration)
