"""An adaptive limit on requests per second at one host, learned from refusals (429, 503, SlowDown). Pure."""

from __future__ import annotations

import math

from ferry.ratelimit.token_bucket import TokenBucket

# CUBIC (RFC 9438, 4.2) on a token bucket's rate, as in the adaptive retries of the AWS SDKs, which take 0.7 for BETA.
# With a Retry-After each refusal pauses the host, so the values here cause fewer.
BETA = 0.9  # the rate after a refusal, as a share of the ceiling
CEILING = 0.98  # the ceiling, as a share of what was accepted: a host that allows bursts accepts more for a while
HOLD_S = (8.0, 32.0)  # from a refusal to the ceiling (CUBIC's K); doubled each time a ceiling is confirmed
SAME = 0.2  # ceilings that differ by less confirm each other
ABOVE = 40.0  # so many requests above a ceiling, more than hosts allow as a burst, show that it has moved
SEARCH_S = 1.0  # a guessed rate doubles in this time
SLOWER = 0.75  # after a Retry-After of n seconds, each try of a higher rate takes n ** 0.75 times as long
MEMORY_S, MEMORY = 0.5, 20.0  # answers are counted over about this time; at slow hosts, over so many answers
CHANCE = 0.03  # of the answers, and one more, may be refused by chance
EVENT_S = 1.0  # refusals within this time, or the mean latency, are one event
FORGET_S = 60.0  # a rate that held no request back for so long is forgotten
BURST_S, BURST = 0.02, 10.0  # of the bucket: 20 ms, at most 10 requests; nginx and others often allow 20
_UPDATE_S = 0.1  # the curve is followed in steps of this


class AdaptiveRate:
    """The rate that a host accepts; infinite before the first refusal.

    | refusal | then |
    |---|---|
    | within 1 s, or the mean latency, of an event | part of it |
    | with a Retry-After | an event |
    | more than 3% of the last half second's answers, and not the only one | an event |
    | any other | chance |

    | answers before the event | the rate |
    |---|---|
    | a quarter of a second or more, a tenth of them accepted | a ceiling, followed by CUBIC's curve from 90% of it |
    | any other | a guess, the geometric mean of sent and accepted, which doubles each second |

    The curve reaches the ceiling after 8 s. It becomes a guess once it has run as long beyond the ceiling, with 40
    requests above it. Only time in which the rate holds requests back counts, so a pause does not raise it. After a
    long Retry-After all these times are longer, because each try of a higher rate may cost as much again.
    """

    __slots__ = (
        "_accepted", "_age_s", "_bucket", "_ceiling", "_counted_at", "_event_at", "_event_s", "_hold_s", "_refused",
        "_slower", "_span_s", "_updated_at", "_wanted", "wanted_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self._bucket: TokenBucket | None = None
        self._ceiling = self._age_s = 0.0  # the age: seconds in which the rate held requests back
        self._hold_s = 0.0  # 0: the ceiling is a guess
        self._slower = 1.0  # the times of the curve are so many times as long
        self._wanted = False  # whether it held a request back since the last update
        self.wanted_at = -math.inf  # when it last held a request back
        self._updated_at = 0.0
        self._event_at: float | None = None
        self._event_s = EVENT_S
        self._accepted = self._refused = self._span_s = self._counted_at = 0.0  # counts over a span, fading with time

    @property
    def per_s(self) -> float:
        """Requests per second at most."""
        bucket = self._bucket  # read once, since status output comes from another thread
        return bucket.per_s if bucket is not None else math.inf

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next request may begin; 0.0 means now."""
        bucket = self._bucket
        if bucket is None:
            return 0.0
        if not 0 <= now - self._updated_at < _UPDATE_S:
            self._grow(now)
        left_s = bucket.wait_s(now)
        if left_s:
            self._wanted, self.wanted_at = True, now
        return left_s

    def book(self, now: float) -> None:
        """Count a request that begins."""
        if self._bucket is not None:
            self._bucket.book(now)

    def rest(self, now: float) -> None:
        """Start again after a pause: no burst, and counts from before the pause are discarded."""
        if self._bucket is not None:
            self._bucket.rest(now)
        self._updated_at = self.wanted_at = now
        self._forget_counts(now)

    def accepted(self, now: float) -> None:
        """Count an answer that is not a refusal. Called once per object, so it must be cheap."""
        self._fade(now)
        self._accepted += 1

    def refused(self, now: float, told_s: float, latency_s: float, in_flight: int) -> bool:
        """Count a refusal; ``told_s``: its Retry-After, or 0. Return whether it is an event, which lowers the rate."""
        self._fade(now)
        self._refused += 1
        if self._event_at is not None and 0 <= now - self._event_at < self._event_s:
            return False
        if not told_s and self._refused <= 1 + CHANCE * (self._accepted + self._refused):
            return False
        self._event_at, self._event_s = now, max(EVENT_S, latency_s)
        self._slower = max(1.0, told_s) ** SLOWER
        self._lower(self.per_s if self._bucket is not None else max(in_flight, 1) / (latency_s or 0.1))
        self._follow(now)
        self.rest(now)
        return True

    def _lower(self, sent_per_s: float) -> None:
        share = self._accepted / (self._accepted + self._refused)
        if self._span_s < self._memory_s / 2 or share < 0.1:
            # One is added so that a host that accepts nothing lowers the rate to its root, and not to 0.
            self._ceiling, self._hold_s = math.sqrt((self._accepted + 1) * sent_per_s), 0.0
            self._age_s = 0.0
            return
        # If the rate was rising, the host accepts more than the mean of the span and less than what was sent last.
        ceiling = CEILING * math.sqrt(self._accepted / self._span_s * sent_per_s * share)
        confirmed = self._hold_s and abs(ceiling - self._ceiling) <= SAME * self._ceiling
        first_s, longest_s = (hold_s * self._slower for hold_s in HOLD_S)
        self._ceiling, self._hold_s = ceiling, min(self._hold_s * 2, longest_s) if confirmed else first_s
        self._age_s = -EVENT_S  # until the event is over

    def _grow(self, now: float) -> None:
        passed_s = min(max(now - self._updated_at, 0.0), 1.0)  # a clock may jump
        self._updated_at = now
        if self._wanted:
            self._wanted = False
            self._age_s += passed_s
            self._follow(now)
        elif now - self.wanted_at > FORGET_S:
            self._bucket = None

    def _follow(self, now: float) -> None:
        """Set the bucket to the rate of the curve at this age."""
        if self._hold_s:
            x = max(self._age_s, 0.0) / self._hold_s - 1
            per_s = self._ceiling * (1 + (1 - BETA) * x**3)
            above = self._ceiling * (1 - BETA) * self._hold_s * x**4 / 4  # the curve's integral from the ceiling on
            if x > 1 and above > ABOVE:
                self._ceiling, self._hold_s, self._age_s = per_s, 0.0, 0.0
        else:
            per_s = self._ceiling * 2 ** (self._age_s / (SEARCH_S * self._slower))
        burst_s = min(BURST_S, BURST / per_s)
        if self._bucket is None:
            self._bucket = TokenBucket(per_s, burst_s)
        else:
            self._bucket.change(per_s, burst_s, now)

    @property
    def _memory_s(self) -> float:
        return max(MEMORY_S, MEMORY / self.per_s)

    def _fade(self, now: float) -> None:
        """Let the counts fade with time: a moving average without windows."""
        passed_s, memory_s = now - self._counted_at, self._memory_s
        if not 0 <= passed_s < 3 * memory_s:
            self._forget_counts(now)
            return
        fade = math.exp(-passed_s / memory_s)
        self._accepted *= fade
        self._refused *= fade
        self._span_s = self._span_s * fade + memory_s * (1 - fade)
        self._counted_at = now

    def _forget_counts(self, now: float) -> None:
        self._accepted = self._refused = self._span_s = 0.0
        self._counted_at = now
