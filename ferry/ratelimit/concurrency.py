"""How many requests in flight a host is worth: a limit that follows the delivery rate. Pure.

The algorithm: docs/explanation/concurrency.md.
"""

from __future__ import annotations

import math
from enum import StrEnum

CUT_WINDOW_S = 0.2  # failures within this, or within the mean latency, are one event
GAIN = 1.25  # startup goes on while a round delivers this much more than the best before it
FLAT_ROUNDS = 2  # rounds without gain that end startup
ROOM = 1.25  # places above rate x latency that are kept after startup
LESS = 0.93  # a rate below this share of the best is less
STEP = 1.25  # a probe of a steady limit: 64 -> 80, or 64 -> 51
STRIDE = 1.5  # the next one down after one that stays
HALF = 2.0  # where far too many are in flight
UP_SHARE = 0.3  # a probe up stays when it brought this share of what it would with no queue at all
GROW_SHARE = 0.7  # and goes on doubling from this share on
DOWN_SHARE = 0.1  # a probe down stays when it cost no more than this share
HALF_SHARE = 0.3  # and one by half
PLAIN_SHARE = 0.5  # from this share on it is plain that the places are needed
ALL_SHARE = 0.1  # what steps down may cost together, before half of the way back is tried
BURDEN = 0.5  # of the places taken up by requests (rate x latency): else rows wait in them for another host
FEW = 8  # in flight are no burden: fewer are tried only where the host is plainly beyond what it bears
NOISE = 1.5  # over the root of a round's answers: what a rate may be off by; counts on top of both
BACK_SHARE = 0.01  # more is brought by the way back, if it is kept
UP_WAIT_S = 4.0
DOWN_WAIT_S = (4.0, 32.0)  # doubled with each probe down that cost something
WALL_WAIT_S = (4.0, 64.0)  # before a limit that was refused is tried again; doubled when it is refused again
WALL_SHARE = 0.8  # of a limit that was refused: what is used until then
SLOWER, FASTER = 0.7, 1.4  # a steady rate that changes by this much is another host than before
_ENOUGH = 400  # completions: sizes that differ by 10x leave a rate uncertain by about 4%
_ENOUGH_ROUGH = 100  # in startup, where the answer is yes or no
_ENOUGH_HALF = 200  # where half as many places are tried, the answer is plain
_PRECISE_S = (0.5, 2.0)  # a round of a steady limit lasts at least, at most (unless `limit` takes longer)
_ROUGH_S = 0.05  # a round of startup lasts at least
_LONGEST_WAIT_S = 64.0


class Phase(StrEnum):
    START = "start"  # nothing measured yet
    GROW = "grow"  # doubling
    HOLD = "hold"
    UP = "up"  # trying more
    DOWN = "down"  # trying less


class AdaptiveConcurrency:
    """The limit on requests in flight. The caller reports completions and overload, and obeys ``limit``.

    Time runs in rounds: after a change, as many completions as were in flight pass by; the next ones, at
    least ``limit`` of them, give the delivery rate. What follows a round:

    | phase | the round | then |
    |---|---|---|
    | any | the limit was not in use | proves nothing: measured again; a probe is taken back |
    | start, grow | 25% above the best so far | double, up to the ceiling (or 4/5 of what was refused) |
    | start, grow | not, twice; or less than before | hold at best rate x lowest latency x 1.25, ``few`` at least |
    | hold | within -30% .. +40% of before | now and then: up by a quarter, or down by a third or a fifth |
    | hold | most places wait for another host | no probe down: it would relieve nobody |
    | hold, far too many | no further down | up by a quarter now and then, as ever |
    | hold | less / more than that | down by half / grow |
    | up | nearly in proportion / somewhat / not above hold's | grow / keep, go on / back |
    | up, half the way back | above / not | keep / back |
    | down | hardly below hold's / below | keep, go on / back, wait longer |
    | down | hardly, but a tenth and more below the best one | up, half the way back to where that was |

    Overload halves the limit (or ends a probe up), at most once per window; the limit that was refused is a
    wall that is left alone for 4 s, or twice as long as last time if it was the same.

    Sources: startup, drain and probing by delivery rate are BBR's (N. Cardwell et al., "BBR: Congestion-Based
    Congestion Control", ACM Queue 2016; draft-ietf-ccwg-bbr); halving is D. Chiu, R. Jain, 1989, and RFC 5681.
    """

    __slots__ = (
        "_back_to", "_base", "_best", "_best_held", "_best_limit", "_burdened", "_ceiling", "_count", "_cut_at",
        "_down_at", "_down_wait_s", "_factor", "_fastest_s", "_few", "_flat", "_floor", "_gains", "_good", "_least",
        "_need", "_noise", "_proved", "_settling", "_since", "_steady", "_sum_s", "_up_at", "_used", "_wall",
        "_wall_at", "_wall_wait_s", "latency_s", "limit", "phase",
    )  # fmt: skip

    def __init__(self, start: int, ceiling: int, floor: int = 1, few: int = FEW) -> None:
        self._few = max(few, floor)
        self._floor = floor
        self._ceiling = max(floor, ceiling)
        self.limit = max(floor, min(start, ceiling))
        self.phase = Phase.START
        self.latency_s = 0.0  # moving average over 8
        self._cut_at: float | None = None
        self._wall = 0  # the limit that was last refused; 0: none
        self._wall_at = 0.0
        self._wall_wait_s = WALL_WAIT_S[0]
        self._proved = True  # a round ended since the last cut
        # the round
        self._settling = True
        self._need = self.limit
        self._count = self._used = 0
        self._sum_s = self._since = 0.0
        # startup
        self._best = 0.0
        self._fastest_s = math.inf
        self._flat = self._gains = 0
        self._good = self.limit
        # the steady limit and its probes
        self._steady = self.limit
        self._base = 0.0
        self._up_at = self._down_at = 0.0
        self._down_wait_s = DOWN_WAIT_S[0]
        self._factor = STRIDE
        # steps down that cost little each may cost much together
        self._best_held = 0.0  # the best steady rate, and
        self._best_limit = self.limit
        self._back_to = False  # the probe up is one to there
        self._least = self._few  # for a probe down
        self._noise = 0.0
        self._burdened = True

    def done(self, latency_s: float, in_flight: int, now: float) -> bool:
        """A request was answered; ``in_flight`` counts it. True when the limit rose. Once per object: cheap."""
        mean = self.latency_s
        self.latency_s = mean + (latency_s - mean) * 0.125 if mean else latency_s
        self._sum_s += latency_s
        self._count += 1
        if in_flight * 10 >= self.limit * 9:
            self._used += 1
        return self._count >= self._need and self._checkpoint(now)

    def overload(self, now: float) -> bool:
        """429, 503, a reset or a timeout. True when the limit was cut (or is at its floor already)."""
        if self._cut_at is not None and 0 <= now - self._cut_at < max(CUT_WINDOW_S, self.latency_s):
            return False
        self._cut_at = self._wall_at = now
        if self._proved or not self._wall:  # else: the same trouble goes on, at a limit that nothing speaks against
            same = self._wall and abs(self.limit - self._wall) * 4 <= self._wall
            self._wall_wait_s = min(self._wall_wait_s * 2, WALL_WAIT_S[1]) if same else WALL_WAIT_S[0]
            self._wall = self.limit
            self._proved = False
        if self.phase is Phase.UP:  # the limit that was tried is too much; the one before was not
            self._up_at = now + UP_WAIT_S
            self._hold(self._steady, self._base)
        else:
            self._grow(0.0, self.limit // 2)
        return True

    def words(self, now: float) -> str:
        """What the limit does and why, for status output."""
        if self.phase is Phase.START:
            return f"starting with {self.limit} in flight"
        if self.phase is Phase.GROW:
            return f"growing: {self.limit} in flight, as long as more bring more"
        if self.phase is Phase.UP:
            return f"trying {self.limit} in flight instead of {self._steady}: do more bring more?"
        if self.phase is Phase.DOWN:
            return f"trying {self.limit} in flight instead of {self._steady}: do fewer bring as much?"
        if self.at_ceiling:
            return f"holding at {self.limit}: no more are allowed"
        if self._wall and self.limit >= self._top(now):
            return f"holding at {self.limit}: {self._wall} in flight were refused"
        return f"holding at {self.limit}: more in flight brought no more"

    @property
    def at_ceiling(self) -> bool:
        return self.limit >= self._ceiling

    def bound(self, ceiling: int) -> None:
        """Another ceiling, from now on."""
        self._ceiling = max(self._floor, ceiling)
        if self.limit > self._ceiling:
            self._set(self._ceiling)

    def rested(self) -> None:
        """Nothing was asked for a while: this round would tell of that, and not of the host."""
        self._settling = True

    # --- rounds

    def _set(self, limit: int) -> None:
        """Another limit; what is in flight under the old one says nothing about it."""
        before, self.limit = self.limit, max(self._floor, min(limit, self._ceiling))
        self._count = self._used = 0
        self._sum_s = 0.0
        self._settling = True
        self._need = max(before, self.limit)

    def _measure(self, now: float) -> None:
        self._settling = False
        self._since = now
        self._count = self._used = 0
        self._sum_s = 0.0
        rough = self.phase in (Phase.START, Phase.GROW)
        self._need = max(self.limit, min(_ENOUGH_ROUGH, 8 * self.limit) if rough else 8)

    def _checkpoint(self, now: float) -> bool:
        elapsed = now - self._since
        if self._settling or elapsed < 0:  # a clock that stepped back spoils one round
            self._measure(now)
            return False
        if self.phase in (Phase.START, Phase.GROW):
            short = elapsed < _ROUGH_S
        else:
            enough = _ENOUGH_HALF if self._factor == HALF else _ENOUGH
            short = elapsed < _PRECISE_S[0] or (self._count < enough and elapsed < _PRECISE_S[1])
        if short:
            self._need = self._count + max(1, self._count // 8)
            return False
        rate, mean_s = self._count / elapsed, self._sum_s / self._count
        idle = self._used * 5 < self._count * 4
        before = self.limit
        self._noise = NOISE / math.sqrt(self._count)
        self._burdened = rate * mean_s >= self.limit * BURDEN
        self._measure(now)
        if not idle:
            self._judge(rate, mean_s, now)
        elif self.phase in (Phase.UP, Phase.DOWN):
            self._up_at, self._down_at = max(self._up_at, now + UP_WAIT_S), max(self._down_at, now + UP_WAIT_S)
            self._hold(self._steady, self._base)
        return self.limit > before

    def _judge(self, rate: float, mean_s: float, now: float) -> None:
        self._proved = True
        if self._wall and self.limit >= self._wall:
            self._wall, self._wall_wait_s = 0, WALL_WAIT_S[0]
        if self.phase is Phase.HOLD:
            self._after_hold(rate, now)
        elif self.phase is Phase.UP:
            self._after_up(rate, now)
        elif self.phase is Phase.DOWN:
            self._after_down(rate, now)
        else:
            self._after_grow(rate, mean_s, now)

    # --- phases

    def _top(self, now: float) -> int:
        """The most that is allowed: a limit that was refused is left alone for a while."""
        if self._wall and 0 <= now - self._wall_at < self._wall_wait_s:
            return min(self._ceiling, max(self._floor, int(self._wall * WALL_SHARE)))
        return self._ceiling

    def _grow(self, best: float, limit: int) -> None:
        self.phase = Phase.GROW
        self._best = best
        self._best_held = 0.0
        self._least = self._few
        self._fastest_s = math.inf
        self._flat = self._gains = 0
        self._good = self.limit
        self._factor = STRIDE
        self._set(limit)

    def _hold(self, limit: int, base: float) -> None:
        self.phase = Phase.HOLD
        self._back_to = False
        self._base = base
        self._steady = limit
        self._set(limit)

    def _note_best(self) -> None:
        if self._base > self._best_held:
            self._best_held, self._best_limit = self._base, self.limit

    def _after_grow(self, rate: float, mean_s: float, now: float) -> None:
        self._fastest_s = min(self._fastest_s, mean_s)
        rate_before = self._best
        gained = rate >= self._best * GAIN
        self._best = max(self._best, rate)
        if gained:
            self._flat, self._good = 0, self.limit
            self._gains += self._best > rate_before > 0
            if self.limit < self._top(now):
                self.phase = Phase.GROW
                self._set(min(self.limit * 2, self._top(now)))
                return
            limit, self._best = self.limit, 0.0
            self._up_at = now  # as soon as what was refused may be tried again
        else:
            self._flat += 1
            less = rate < self._best * LESS
            if self._flat < FLAT_ROUNDS and not less and self.limit < self._top(now):
                return
            limit = max(math.ceil(self._best * self._fastest_s * ROOM), self._good // 2, self._few)
            if less:
                limit = min(limit, self._good)
            if not self._gains:  # it began with more than the host bears
                self._factor = HALF
            self._up_at = now + UP_WAIT_S
        if gained:  # the last doubling told that the places are needed
            self._down_wait_s = DOWN_WAIT_S[1]
            self._down_at = now + DOWN_WAIT_S[1]
        else:
            self._down_wait_s = DOWN_WAIT_S[0]
            self._down_at = now if self._factor == HALF else now + UP_WAIT_S
        self._hold(min(limit, self.limit), 0.0)

    def _after_hold(self, rate: float, now: float) -> None:
        base, self._base = self._base, rate
        if base:
            if rate > base * FASTER and self.limit < self._top(now):
                self._grow(rate, min(self.limit * 2, self._top(now)))
                return
            if rate < base * SLOWER:  # measured once more: this round may be half of before, half of now
                self._base, self._factor, self._down_at = 0.0, HALF, now
                self._best_held = 0.0
                return
            self._base = (base + rate) / 2
        elif self._factor < HALF and rate < self._best * LESS:  # it drained too much
            self._up_at = now
        self._note_best()
        if self._factor == HALF and not self._may_shrink:
            self._factor = STRIDE  # no further down, so up again now and then
        if self._factor < HALF and self._due(self._up_at, now) and self._up(now):
            return
        if self._due(self._down_at, now) and self._may_shrink:
            self._down()

    @property
    def _may_shrink(self) -> bool:
        """Fewer may be tried: these are more than a few, and rows do not wait in them for another host."""
        return self.limit > self._least and self._burdened

    @staticmethod
    def _due(at: float, now: float) -> bool:
        return not 0 < at - now <= _LONGEST_WAIT_S

    def _up(self, now: float) -> bool:
        wanted = max(self.limit + 1, int(self.limit * STEP))
        top = self._top(now)
        if self.limit >= top:
            return False
        self.phase = Phase.UP
        self._steady = self.limit
        self._set(min(wanted, top))
        return True

    def _down(self) -> None:
        self.phase = Phase.DOWN
        self._steady = self.limit
        self._set(max(self._least, min(self.limit - 1, round(self.limit / self._factor))))

    def _after_up(self, rate: float, now: float) -> None:
        if self._back_to:
            self._after_back(rate, now)
            return
        share = (rate / self._base - 1) / (self.limit / self._steady - 1)
        if share >= GROW_SHARE and self.limit < self._top(now):
            self._grow(rate, min(self.limit * 2, self._top(now)))
        elif share >= UP_SHARE:
            self.phase = Phase.HOLD
            self._base = rate
            if not self._up(now):
                self._hold(self.limit, rate)
        else:
            self._up_at = now + UP_WAIT_S
            self._hold(self._steady, self._base)

    def _back(self) -> None:
        """Was it the steps down that cost so much, or is the host slower now? Half the way back will tell."""
        self.phase, self._back_to, self._factor = Phase.UP, True, STRIDE
        self._steady = self.limit
        self._set(max(self.limit + 1, round(math.sqrt(self.limit * self._best_limit))))

    def _after_back(self, rate: float, now: float) -> None:
        if rate >= self._base * (1 + BACK_SHARE + self._noise):
            self._down_wait_s = DOWN_WAIT_S[1]
            self._down_at = now + self._down_wait_s
            self._hold(self.limit, rate)
        else:
            self._hold(self._steady, self._base)
        self._best_held, self._best_limit = self._base, self.limit

    def _after_down(self, rate: float, now: float) -> None:
        share = (1 - rate / self._base) / (1 - self.limit / self._steady)
        if share <= (DOWN_SHARE if self._factor < HALF else HALF_SHARE):
            if share < -0.25:  # less in flight even brings more: the host is beyond what it bears
                self._factor, self._least = HALF, self._floor
            elif self._factor < HALF:
                self._factor = STRIDE
            self._down_wait_s = DOWN_WAIT_S[0]
            self._base = rate
            self._note_best()
            if rate < self._best_held * (1 - ALL_SHARE - self._noise) and self._best_limit <= self._top(now):
                self._back()
            elif self._may_shrink:
                self._down()
            else:
                self._hold(self.limit, rate)
            return
        halved, self._factor = self._factor == HALF, STRIDE if self._factor == STEP else STEP
        if share >= PLAIN_SHARE:  # less may be chance
            self._down_wait_s = min(self._down_wait_s * 2, DOWN_WAIT_S[1])
        self._down_at = now if halved else now + self._down_wait_s
        self._hold(self._steady, self._base)
