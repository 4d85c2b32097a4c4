"""A limit on units (requests, bytes) per second."""

from __future__ import annotations

import math

SLACK_S = 0.05  # the largest burst; a busy event loop that is late by less loses no rate
_TINY_S = 1e-6  # rounding


class TokenBucket:
    """A limit on units per second with a burst of ``slack_s``. The clock is monotonic, in seconds.

    It stores one number: when the units so far will be paid for (GCRA, ITU-T I.371). A clock that jumps ahead pays for
    `slack_s` at most. When a clock steps back, the stored time moves with it.
    """

    __slots__ = ("_paid_at", "_seen", "per_s", "slack_s")

    def __init__(self, per_s: float, slack_s: float = SLACK_S) -> None:
        self.per_s = per_s
        self.slack_s = slack_s
        self._paid_at = self._seen = -math.inf

    def wait_s(self, now: float, ahead_s: float | None = None) -> float:
        """Return the seconds until the next unit may begin; 0.0 means now. ``ahead_s`` replaces the slack."""
        self._see(now)
        left = self._paid_at - now - (self.slack_s if ahead_s is None else ahead_s)
        return left if left > _TINY_S else 0.0

    def book(self, now: float, units: float = 1.0) -> None:
        """Count units that begin."""
        self._see(now)
        self._paid_at = max(now, self._paid_at) + units / self.per_s

    def change(self, per_s: float, slack_s: float, now: float) -> None:
        """Set another rate, which also applies to units that are not paid for yet."""
        self._see(now)
        self._paid_at = now + (self._paid_at - now) * self.per_s / per_s
        self.per_s, self.slack_s = per_s, slack_s

    @staticmethod
    def changed(bucket: TokenBucket | None, per_s: float | str | None, now: float) -> TokenBucket | None:
        """Return the bucket with another rate, a new bucket, or None without a rate. Unpaid units stay unpaid."""
        if per_s is None or bucket is None:
            return None if per_s is None else TokenBucket(float(per_s))
        bucket.change(float(per_s), bucket.slack_s, now)
        return bucket

    def rest(self, now: float) -> None:
        """Discard the slack, so that the next units begin one after the other."""
        self._see(now)
        self._paid_at = max(self._paid_at, now + self.slack_s)

    def _see(self, now: float) -> None:
        if now < self._seen:  # the clock stepped back
            self._paid_at -= self._seen - now
        self._seen = now
