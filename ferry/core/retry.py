"""Up to five tries for requests that do not move an object: state, lists, preflight, listings, multipart control.

An object's own retries are in retry.py. Most of them block the calling thread, outside an event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ferry.core.errors import Fatal, ObjectError
from ferry.core.records import Again, ErrorClass

T = TypeVar("T")
ATTEMPTS = 5
RETRYABLE_STATUSES = frozenset({200, 404, 408, 409, 425, 429})
PERMANENT_STATUSES = frozenset({501, 505, 507})


def backoff_s(try_no: int, base_s: float, max_s: float, rng: random.Random) -> float:
    """Seconds to wait after the failed try ``try_no`` (1, 2, ...): between 0 and base * 2^(n-1), at most ``max_s``.

    "Full jitter" of Marc Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015: of
    the variants measured there it makes the fewest calls for the same work.
    """
    return rng.uniform(0.0, min(max_s, base_s * 2.0 ** min(try_no - 1, 64)))


def worth_another_try(error: ObjectError | Fatal) -> bool:
    """Returns whether the same request may succeed a moment later. The first row that fits decides:

    | the error | |
    |---|---|
    | Fatal: credentials, no such bucket, a full disk | no |
    | 4xx that the origin's error classes call terminal, a blocked address, a missing object | no |
    | no status: timeout, reset, no connection, a body that was cut | yes |
    | an <Error> under 200; 408, 409 (two writes at once), 425, 429 | yes |
    | 404 that does not name what is missing: a proxy's, before a store that restarts | yes |
    | 501, 505, 507 | no |
    | other 5xx | yes |
    | any other status: 3xx, 4xx | no |
    """
    if isinstance(error, Fatal) or error.again is not Again.NOW:
        return False
    status = error.status_code
    return status is None or status in RETRYABLE_STATUSES or (status >= 500 and status not in PERMANENT_STATUSES)


@dataclass(frozen=True)
class Tries:
    """How often and how patiently. ``max_s`` also limits what a Retry-After may ask for."""

    attempts: int = ATTEMPTS
    base_s: float = 0.5
    max_s: float = 10.0
    sleep: Callable[[float], object] = time.sleep
    rng: random.Random = field(default_factory=random.Random)

    def __call__(self, work: Callable[[], T]) -> T:
        """Returns what ``work`` returns; raises its last ObjectError, and a Fatal at once."""
        for number in range(1, self.attempts):
            try:
                return work()
            except ObjectError as error:
                if not worth_another_try(error):
                    raise
                pause_s = self._pause_s(number, error)
            self.sleep(pause_s)
        return work()

    async def call_async(self, work: Callable[[], Awaitable[T]]) -> T:
        """As a call, in an event loop, for an object that is on its way. Silence is not tried again: it has lasted long
        enough, and the run is to hear of it (destination_outage.py)."""
        for number in range(1, self.attempts):
            try:
                return await work()
            except ObjectError as error:
                if not worth_another_try(error) or error.error_class is ErrorClass.TIMEOUT:
                    raise
                pause_s = self._pause_s(number, error)
            await asyncio.sleep(pause_s)
        return await work()

    def _pause_s(self, number: int, error: ObjectError) -> float:
        requested_s = min(error.retry_after_s or 0.0, self.max_s)
        return max(backoff_s(number, self.base_s, self.max_s, self.rng), requested_s)
