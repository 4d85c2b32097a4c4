"""An adaptive limit on requests in flight at one host, found by steps that the delivery rate judges. Pure.

Latency judges no step. Objects differ in size by 10x, so latency depends on the object more than on the host
(docs/decisions/0041-a-smaller-limiter.md).
"""

from __future__ import annotations

COARSE, FINE = 2.0, 1.25  # steps: TCP's slow start (RFC 5681, 3.1) and BBR's probe (draft-ietf-ccwg-bbr, ProbeBW_UP)
PRICE = 0.25  # the least gain of a step up: BBR ends its startup when twice as many bring less than 25%
NO_QUEUE = 0.7  # with this gain of a step up, twice as many in flight may deliver more
FEW = 8  # the limit goes below this only where fewer requests deliver more
OTHER_HOST = (0.7, 1.2)  # a rate that changes by these factors starts a new search
WAIT_S, WAIT = 4.0, 8.0  # between two steps from a limit that was found, or so many mean latencies
DOWN_EVERY = 4  # one of so many steps is down, because a step up costs only latency, and a step down costs rate
CUT_WINDOW_S = 0.2  # failures within this time, or the mean latency, are one event, as TCP halves once per round trip
# With sizes that differ by 10x, a rate counted over n answers is off by 0.66 / sqrt(n): 7% for 100, 3% for 400.
ANSWERS = {COARSE: 100, FINE: 400}
ROUND_S = {COARSE: (0.05, 2.0), FINE: (0.5, 2.0)}  # the shortest round, and the longest with too few answers


class Round:
    """The delivery rate at one limit.

    Its first answers are skipped: their requests began under another limit. It has as many answers as the limit, or a
    multiple: where latency hardly varies, answers come together, and part of such a group would change the rate.
    """

    __slots__ = ("_enough", "_least_s", "_limit", "_most_s", "_since", "_skip", "_used", "answers")

    def __init__(self, skip: int, limit: int, step: float) -> None:
        self._skip = max(1, skip)
        self._limit = limit
        self._enough = min(ANSWERS[step], 4 * limit) if step == COARSE else ANSWERS[step]
        self._least_s, self._most_s = ROUND_S[step]
        self._since = 0.0
        self._used = 0
        self.answers = 0

    def add(self, used: bool, now: float) -> float | None:
        """Count an answer. Return the rate per second if the round ends with it.

        ``used``: as many requests as the limit allows were in flight.
        """
        elapsed_s = now - self._since
        if self._skip or elapsed_s < 0:  # or the clock stepped back
            self._skip = max(0, self._skip - 1)
            self._since, self._used, self.answers = now, 0, 0
            return None
        self.answers += 1
        self._used += used
        if self.answers % self._limit or elapsed_s < self._least_s:
            return None
        return self.answers / elapsed_s if self.answers >= self._enough or elapsed_s >= self._most_s else None

    @property
    def in_use(self) -> bool:
        """Whether the limit was used most of the time. Else the rate shows what the caller had to do."""
        return self._used * 5 >= self.answers * 4


def gain(steady: int, rate: float, tried: int, rate_tried: float) -> float:
    """Return what each further request in flight delivers, as a share of what each of the steady ones delivers.

    | in flight | rate | gain |
    |---|---|---|
    | 32 -> 64 | 100 -> 200/s | 1: no queue yet |
    | 32 -> 64 | 100 -> 125/s | 0.25 |
    | 32 -> 64 or 16 | 100 -> 100/s | 0: the others only wait |
    | 32 -> 16 | 100 -> 50/s | 1: all of them are needed |
    | 32 -> 16 | 100 -> 120/s | -0.4: too many |
    """
    return (rate_tried / rate - 1) / (tried / steady - 1)


class AdaptiveConcurrency:
    """A limit on requests in flight that climbs by delivery rate and halves after failures.

    A round measures the rate at the steady limit. A step tries another limit for a round. Its :func:`gain` decides
    whether the limit stays there:

    | round | then |
    |---|---|
    | the first | steps x2, /2, x1.25, /1.25, until one is kept |
    | step up, gain of 25% or more | kept; x1.25; before it x2, after a x2 or with a gain of 70% |
    | step down, gain below 25%, limit in use: the others were not needed | kept; /2, /1.25 |
    | any other step | taken back; next step |
    | steady, rate 20% above the last | x2, x1.25 |
    | steady, rate 30% below the last | measured again; /2, /1.25 |
    | steady, every 4 s, or 8 latencies | x1.25, each fourth time /1.25 |
    | steady, limit not in use | measured again |
    | overload during a step up | step taken back |
    | any other overload, once per round trip | half; x2, x1.25 |

    A step down ends at ``few``, unless fewer than that deliver more. The rate is 0 until it is measured.
    """

    __slots__ = (
        "_ceiling", "_cut_at", "_few", "_next_at", "_rate", "_round", "_start", "_steady", "_steps", "_waits",
        "latency_s", "limit",
    )  # fmt: skip

    def __init__(self, start: int, ceiling: int, few: int = FEW) -> None:
        self._start, self._ceiling = start, ceiling
        self._few = few
        self.limit = self._steady = min(start, ceiling)
        self.latency_s = 0.0  # moving average over 8 answers
        self._rate = 0.0
        self._steps = [COARSE, 1 / COARSE, FINE, 1 / FINE]
        self._waits = 0
        self._next_at = 0.0
        self._cut_at: float | None = None
        self._round = Round(self.limit, self.limit, COARSE)

    def answered(self, latency_s: float, used: bool, now: float) -> bool:
        """Count an answer; return whether the limit rose. Called once per object, so it must be cheap.

        ``used``: as many requests as the limit allows were in flight.
        """
        mean_s = self.latency_s
        self.latency_s = mean_s + (latency_s - mean_s) * 0.125 if mean_s else latency_s
        rate = self._round.add(used, now)
        if rate is None:
            return False
        before = self.limit
        if self.limit != self._steady:
            self._after_step(rate)
        elif self._round.in_use:
            self._after_steady(rate, now)
        else:
            self._measure(self.limit, FINE)
        return self.limit > before

    def overload(self, now: float) -> bool:
        """Count a reset or a timeout. Return False if it belongs to an event that has lowered the limit already."""
        if self._cut_at is not None and 0 <= now - self._cut_at < max(CUT_WINDOW_S, self.latency_s):
            return False
        self._cut_at = now
        if not self.step_back():
            self._steady, self._rate, self._steps = max(1, self.limit // 2), 0.0, [COARSE, FINE]
            self._measure(self._steady, COARSE)
        return True

    def step_back(self) -> bool:
        """Take back a step up that the host refuses. Return whether one was under way."""
        if self.limit <= self._steady:
            return False
        self._next_step(self._few)
        return True

    def bound(self, ceiling: int) -> None:
        """Set the maximum, from now on. If the last one was in use, a higher one starts a search, as from the start."""
        freed, self._ceiling = self.at_ceiling and ceiling > self._ceiling, ceiling
        if max(self.limit, self._steady) > ceiling:
            self._steady = min(self._steady, ceiling)
            self._measure(self._steady, FINE)
        elif freed:
            self._steady, self._rate, self._steps = max(self.limit, min(self._start, ceiling)), 0.0, [COARSE, FINE]
            self._measure(self._steady, COARSE)

    def rested(self) -> None:
        """Begin a new round after a pause of the run, which would count as a low rate."""
        self._measure(self._steady, FINE)

    @property
    def at_ceiling(self) -> bool:
        """Whether the limit is the maximum."""
        return self.limit >= self._ceiling

    def reason(self) -> str:
        """Return what determines the limit, for status output."""
        if self.limit != self._steady:
            question = "rises" if self.limit > self._steady else "stays the same"
            return f"trying {self.limit} in flight instead of {self._steady}, to see if the rate {question}"
        if not self._rate:
            return f"measuring the rate with {self.limit} in flight"
        if self.at_ceiling:
            return f"holding at {self.limit}, the maximum"
        return f"holding at {self.limit}: more in flight did not raise the rate"

    def _measure(self, limit: int, step: float) -> None:
        before, self.limit = self.limit, limit
        self._round = Round(max(before, limit) if limit != before else 1, limit, step)

    def _after_steady(self, rate: float, now: float) -> None:
        before, self._rate = self._rate, rate
        slower, faster = OTHER_HOST
        if before and rate < slower * before:  # the host may have changed in the middle of this round
            self._rate, self._steps = 0.0, [1 / COARSE, 1 / FINE]
            self._measure(self.limit, FINE)
            return
        if before and rate > faster * before:
            self._steps = [COARSE, FINE]
        wait_s = max(WAIT_S, WAIT * self.latency_s)
        if not self._steps and not 0 < self._next_at - now <= wait_s:  # or the clock stepped back
            self._waits += 1
            self._next_at = now + wait_s
            self._steps = [1 / FINE if self._waits % DOWN_EVERY == 0 else FINE]
        if not self._step(self._few):
            self._measure(self.limit, FINE)

    def _after_step(self, rate: float) -> None:
        found, up = gain(self._steady, self._rate, self.limit, rate), self.limit > self._steady
        least = self._few
        if found >= PRICE if up else self._round.in_use and found < PRICE:
            far = found >= NO_QUEUE or self.limit >= COARSE * self._steady
            self._steady, self._rate = self.limit, rate
            self._steps = [1 / COARSE, 1 / FINE] if not up else [COARSE, FINE] if far else [FINE]
            if not up and found <= -PRICE:
                least = 1
        self._next_step(least)

    def _next_step(self, least: int) -> None:
        """Try the next step. If none is left, hold the steady limit and try a step later."""
        if not self._step(least):
            self._measure(self._steady, FINE)

    def _step(self, least: int) -> bool:
        """Try the next step that changes the limit. Return False if none is left."""
        while self._steps:
            step, steady = self._steps.pop(0), self._steady
            if step > 1:
                limit = min(max(steady + 1, int(steady * step)), self._ceiling)
            else:
                limit = max(least, round(steady * step))
            if (limit > steady) if step > 1 else (limit < steady):
                self._measure(limit, FINE if step in (FINE, 1 / FINE) else COARSE)
                return True
        return False
