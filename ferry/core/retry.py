"""Retries with backoff for requests that transfer no object: state, manifests, preflight, listings, multipart control.

Most of these requests block the calling thread, outside an event loop. ferry.transfer.retry has the retries of objects.
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
    """Return the seconds to wait after failed try ``try_no`` (1, 2, ...): 0 to base * 2^(n-1), at most ``max_s``.

    This is "full jitter" (Marc Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015). Of the variants
    measured there it makes the fewest calls for the same work.
    """
    return rng.uniform(0.0, min(max_s, base_s * 2.0 ** min(try_no - 1, 64)))


def worth_another_try(error: ObjectError | Fatal) -> bool:
    """Return whether the same request may succeed a moment later. The first matching row decides:

    | error | retry |
    |---|---|
    | Fatal: credentials, missing bucket, full disk | no |
    | an error class that is not retried within a run: blocked address, missing object, most 4xx of an origin | no |
    | without a status: timeout, reset, no connection, truncated body | yes |
    | an <Error> with status 200; 408, 409 (concurrent writes), 425, 429 | yes |
    | 404 that does not name the missing thing: from a proxy, while the store restarts | yes |
    | 501, 505, 507 | no |
    | other 5xx | yes |
    | any other 3xx or 4xx | no |
    """
    if isinstance(error, Fatal) or error.again is not Again.NOW:
        return False
    status = error.status_code
    return status is None or status in RETRYABLE_STATUSES or (status >= 500 and status not in PERMANENT_STATUSES)


@dataclass(frozen=True)
class Tries:
    """Number of tries and the waits between them, in seconds. ``max_s`` also limits the wait for a Retry-After."""

    attempts: int = ATTEMPTS
    base_s: float = 0.5
    max_s: float = 10.0
    sleep: Callable[[float], object] = time.sleep
    rng: random.Random = field(default_factory=random.Random)
    timeouts_too: bool = False  # whether call_async tries again after a timeout

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns. Raises its last ObjectError; a permanent error or a Fatal at once."""
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
        """As a call, but in an event loop, for a request that belongs to the transfer of an object.

        A timeout is retried only if ``timeouts_too`` is set: it has lasted long already, and destination_outage.py has
        to count it.
        """
        for number in range(1, self.attempts):
            try:
                return await work()
            except ObjectError as error:
                timed_out = error.error_class is ErrorClass.TIMEOUT
                if not worth_another_try(error) or (timed_out and not self.timeouts_too):
                    raise
                pause_s = self._pause_s(number, error)
            await asyncio.sleep(pause_s)
        return await work()

    def _pause_s(self, number: int, error: ObjectError) -> float:
        requested_s = min(error.retry_after_s or 0.0, self.max_s)
        return max(backoff_s(number, self.base_s, self.max_s, self.rng), requested_s)
