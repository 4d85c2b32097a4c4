"""Requests and bytes per second: the user's bounds, and the rate that a host was found to allow. Pure."""

from __future__ import annotations

import math

SLACK_S = 0.05  # what a busy loop may be late by without losing rate; a burst after rest is no more than this
PACE_SLACK_S, PACE_SLACK = 0.02, 10.0  # of a pace, and in requests: hosts often allow a burst of 20 and no more

WINDOW_S = 0.5  # answers are counted over this, or over 20 answers of a slow host
EVENT_S = 1.0  # refusals within this, or within the mean latency, are one event
EXCUSE_S = 0.2
BETA = 0.9  # after a refusal the rate is this share of the plateau
PLATEAU = 0.96  # the plateau as a share of what was accepted: a bucket's burst makes that look like more
SCALE_S = (8.0, 64.0)  # seconds from the refusal to the plateau, and as many on it; doubled when it is confirmed
RISE_S = 4.0  # from there to the plateau
SAME = 0.2  # two ceilings that differ by less are the same
MORE = 1.2  # accepted above the ceiling by this factor: there is more room than was thought
STRAYS = 3  # of them show that the ceiling is none
BELOW, BELOW_CONFIRMED = 0.95, 1.01  # refusals below this share of the ceiling are not what it is about
TROUBLE = 0.05  # unless they are this share of the answers
RAMP = 0.8  # answers that come at less than this share of what is in flight tell of a rate that grows
CHANCE = 0.02  # of answers may be refusals by chance while nothing is known
SEARCH_S = 2.0  # while no ceiling is known the rate doubles in this time
RETURN_S = 1.0  # and in this after a time in which nothing was accepted
LEAST_PER_S = 0.1
_ANSWERS = 500  # that the share of stray refusals looks back on, as a moving average
_TINY_S = 1e-6  # rounding
_FEW = 16  # answers that say nothing yet of a share
_STEP_S = 0.1
_GUESS_S = 0.1  # the latency of a host that has not answered yet
_LOOK_S = 1.0  # a rate that grows is looked at this often
_CUT_MOST = 8.0
_FORGET_S = 60.0


class TokenBucket:
    """A bound on units per second, without a second's worth of burst. The clock is monotonic, in seconds.

    It keeps the moment at which the last unit is paid for (GCRA, ITU-T I.371: a token bucket in one
    number). A clock that jumps ahead pays for `slack_s` and no more; one that steps back takes the
    moment with it.
    """

    __slots__ = ("_paid_at", "_seen", "per_s", "slack_s")

    def __init__(self, per_s: float, slack_s: float = SLACK_S) -> None:
        self.per_s = per_s
        self.slack_s = slack_s
        self._paid_at = self._seen = -math.inf

    def wait_s(self, now: float, ahead_s: float | None = None) -> float:
        """Seconds until the next unit may go; 0.0: now. ``ahead_s``: how far it may be ahead of its pay."""
        if now < self._seen:
            self._paid_at -= self._seen - now
        self._seen = now
        left = self._paid_at - now - (self.slack_s if ahead_s is None else ahead_s)
        return left if left > _TINY_S else 0.0

    def book(self, now: float, units: float = 1.0) -> None:
        """Units have gone."""
        if now < self._seen:
            self._paid_at -= self._seen - now
        self._seen = now
        paid_at = self._paid_at
        self._paid_at = max(now, paid_at) + units / self.per_s

    def change(self, per_s: float, slack_s: float, now: float) -> None:
        """Another rate; what has gone already is paid for at it."""
        if self._paid_at > now:
            self._paid_at = now + (self._paid_at - now) * self.per_s / per_s
        self.per_s, self.slack_s = per_s, slack_s

    def rest(self, now: float) -> None:
        """From now on one after the other: what was saved up is void."""
        self._paid_at = max(self._paid_at, now + self.slack_s) if now >= self._seen else now + self.slack_s
        self._seen = now


class AdaptiveRate:
    """The rate that a host allows, learned from its refusals (429, 503, SlowDown). None before the first.

    | a refusal comes | then |
    |---|---|
    | within 1 s (or the mean latency) of the last event | it is the same event |
    | with a Retry-After | it is an event |
    | below the ceiling: fewer than 5%, or a single one | a stray; after three the ceiling is none: search |
    | while no ceiling is known: fewer than 2% | a stray |
    | at the ceiling: no more than strays were seen below it | a stray |

    | an event | the rate then |
    |---|---|
    | less than a window after a pause or the start | a search, from between what was sent and what was accepted |
    | when nothing was accepted | a search from an eighth of the rate, doubling each second |
    | else | ceiling = 96% of what was accepted; 90% of the ceiling, rising to it in 4 s |

    From the ceiling on the curve is CUBIC's (RFC 9438 section 4.2): flat, then ever steeper. Its time scale is no
    constant but doubles, 8 s to 64 s, whenever a ceiling is confirmed within 20%, so that a known one is tried ever
    more rarely; it starts anew when a fifth more is accepted. As with the AWS SDKs' adaptive retries the curve is
    one of requests per second. Time in which the rate holds nothing back, pauses included, does not count.
    """

    __slots__ = (
        "_accepted", "_age", "_before", "_before_refused", "_before_s", "_ceiling", "_confirmed", "_double_s",
        "_event_at", "_event_s", "_lifted", "_rate", "_refused", "_scale_s", "_start", "_stray", "_stray_before",
        "_strays", "_unused_s", "_updated_at", "_wanted", "_wanted_at", "_window_at", "_window_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self._rate: TokenBucket | None = None
        self._ceiling = 0.0  # 0: not known, the rate is searched for
        self._scale_s = SCALE_S[0]
        self._confirmed = False
        self._age = 0.0  # seconds of use since the curve's start
        self._start = 0.0  # of a search, requests/s
        self._double_s = SEARCH_S
        self._updated_at = self._unused_s = 0.0
        self._wanted_at = -math.inf
        self._wanted = False
        self._stray = 0.0  # share of answers that are refusals whatever the rate
        self._stray_before = 0.0
        self._strays = 0  # since the last event, below the ceiling
        self._lifted = False
        self._event_at: float | None = None
        self._event_s = EVENT_S
        self._window_s = WINDOW_S
        self._window_at: float | None = None
        self._accepted = self._refused = 0
        self._before = self._before_refused = 0  # the window before
        self._before_s = 0.0

    @property
    def per_s(self) -> float:
        """Requests per second at most; inf while nothing is known."""
        rate = self._rate  # read once: status output comes from another thread
        return rate.per_s if rate is not None else math.inf

    @property
    def wanted_at(self) -> float:
        """When it last held a request back."""
        return self._wanted_at

    def accepted(self, now: float) -> None:
        """An answer that is no refusal. Once per object: cheap."""
        self._accepted += 1
        at = self._window_at
        if at is None or not 0 <= now - at < self._window_s:
            self._roll(now)

    def wait_s(self, now: float) -> float:
        """Seconds until the next request may go; 0.0: now."""
        rate = self._rate
        if rate is None:
            return 0.0
        if not 0 <= now - self._updated_at < _STEP_S:
            self._update(now)
        left = rate.wait_s(now)
        if left:
            self._wanted = True
            self._wanted_at = now
        return min(left, _LOOK_S)

    def book(self, now: float) -> None:
        if self._rate is not None:
            self._rate.book(now)

    def rest(self, now: float) -> None:
        """A pause is over: no burst, and what was counted before it is void."""
        if self._rate is not None:
            self._rate.rest(now)
        self._updated_at = now
        self._forget_windows(now)

    def refused(self, now: float, told: bool) -> bool:
        """A sure refusal. True when it begins an event, which :meth:`lower` or :meth:`excuse` is to answer.

        ``told``: it came with a Retry-After, so it is no stray.
        """
        if self._window_at is None or not 0 <= now - self._window_at < 3 * self._window_s:
            self._forget_windows(now)  # nothing came for long, or the clock jumped
        self._refused += 1
        if self._event_at is not None and 0 <= now - self._event_at < self._event_s:
            return False
        answers = self._accepted + self._refused + self._before + self._before_refused
        refusals = self._refused + self._before_refused
        stray = not told and self._is_stray(answers, refusals)
        self._count_stray(True)
        if not stray:
            return True
        self._strays += self._below()
        if self._strays >= STRAYS:
            self._strays = 0
            self._lift()
        return False

    def lower(self, now: float, latency_s: float, in_flight: int) -> None:
        """The host is asked for too much."""
        self._strays, self._lifted = 0, False
        self._stray = self._stray_before  # what came since the last window was no chance
        since, self._event_at = self._event_at, now
        self._event_s = max(EVENT_S, latency_s)
        in_flight = max(in_flight, 1)
        self._learn(now, in_flight, in_flight / (latency_s or _GUESS_S), since)

    def excuse(self, now: float, latency_s: float) -> None:
        """What is refused until the requests in flight have ended is not about the rate."""
        self._event_at, self._event_s = now, max(EXCUSE_S, latency_s)

    # --- what a refusal means

    def _below(self) -> bool:
        """Is it asked for less than the ceiling? Up to the plateau of one that was confirmed, well below another."""
        share = BELOW_CONFIRMED if self._confirmed else BELOW
        return bool(self._ceiling) and self.per_s <= self._ceiling * share

    def _count_stray(self, refused: bool, answers: int = 1) -> None:
        if self._lifted or self._below():
            weight = answers / (answers + _ANSWERS)
            self._stray += ((1.0 if refused else 0.0) - self._stray) * weight

    def _is_stray(self, answers: int, refusals: int) -> bool:
        if self._below():
            return refusals < 2 or refusals < answers * TROUBLE
        if answers >= _FEW and (refusals < 2 or (not self._ceiling and refusals < answers * CHANCE)):
            return True
        expected = (self._stray - 1.5 / _ANSWERS) * answers  # one or two may be chance
        return expected > 0 and refusals <= 2 * expected + 3 * math.sqrt(expected)

    def _lift(self) -> None:
        """Refusals go on however slow it is asked: they are not about the rate."""
        self._start, self._age, self._double_s = self.per_s, 0.0, SEARCH_S
        self._ceiling, self._scale_s = 0.0, SCALE_S[0]
        self._lifted = True

    def _learn(self, now: float, in_flight: int, sent_per_s: float, since: float | None) -> None:
        window_s = now - (self._window_at if self._window_at is not None else now)
        span_s = window_s + self._before_s
        accepted, refused = self._accepted + self._before, self._refused + self._before_refused
        if span_s >= self._window_s and accepted * 10 > refused:
            per_s = accepted / span_s
            sent_per_s = min(self.per_s, sent_per_s) * accepted / (accepted + refused)
            ramp = per_s < RAMP * sent_per_s
            if ramp:  # it was asked for ever more; the truth lies between the mean and the last of it
                per_s = math.sqrt(per_s * sent_per_s)
            self._found(PLATEAU * per_s, sure=not ramp)
        else:
            sent_per_s = min(self.per_s, sent_per_s)
            passed_s = max(1.0, span_s, min(now - since, 10.0) if since is not None else 0.0)
            will_be = in_flight * accepted / (accepted + refused) / 2  # of what is in flight
            per_s = max(math.sqrt(sent_per_s * (accepted + will_be) / passed_s), sent_per_s / _CUT_MOST)
            self._ceiling = 0.0
            self._start, self._age = min(per_s, sent_per_s), 0.0
            self._double_s = SEARCH_S if accepted else RETURN_S
        self._apply(now)
        self._window_s = max(WINDOW_S, min(20 / self.per_s, 30.0))
        self.rest(now)

    def _found(self, ceiling: float, sure: bool) -> None:
        self._confirmed = sure and bool(self._ceiling) and abs(ceiling - self._ceiling) <= SAME * self._ceiling
        if not self._confirmed:
            self._scale_s = SCALE_S[0] if sure else SCALE_S[0] / 2
        else:
            self._scale_s = min(self._scale_s * 2, SCALE_S[1])
        self._ceiling = ceiling
        self._unused_s = 0.0
        self._age = -EVENT_S  # until the event is over

    # --- time

    def _open_window(self, now: float) -> None:
        self._window_at = now
        self._accepted = self._refused = 0

    def _forget_windows(self, now: float) -> None:
        self._open_window(now)
        self._before = self._before_refused = 0
        self._before_s = 0.0

    def _roll(self, now: float) -> None:
        """A window is full."""
        span_s = now - (self._window_at if self._window_at is not None else now)
        if self._accepted > 1 and 0 < span_s < 3 * self._window_s:
            self._before, self._before_refused, self._before_s = self._accepted, self._refused, span_s
            self._count_stray(False, self._accepted)
            self._stray_before = self._stray
            if self._ceiling and self._accepted / span_s > self._ceiling * MORE:
                self._ceiling = self._accepted / span_s
                self._scale_s = SCALE_S[0]
                self._age = 2 * self._scale_s
        else:
            self._before = self._before_refused = 0
            self._before_s = 0.0
        self._open_window(now)

    def _update(self, now: float) -> None:
        """The curve goes on while the rate is needed."""
        passed_s = min(max(now - self._updated_at, 0.0), 1.0)
        self._updated_at = now
        searching = not self._ceiling and self._before > self.per_s * self._before_s / 2
        if self._wanted or searching:  # a search that places hold back goes on, up to twice what is accepted
            self._age += passed_s
            self._wanted = False
            self._unused_s = 0.0
            self._apply(now)
            return
        self._unused_s += passed_s
        if self._unused_s > _FORGET_S:  # for a minute nobody asked for as much
            self._rate = None
            self._ceiling = 0.0
            self._scale_s = SCALE_S[0]

    def _apply(self, now: float) -> None:
        if self._ceiling:
            age, scale_s = self._age, self._scale_s
            x = min(max(age, 0.0) / RISE_S - 1, 0.0) if age < scale_s else (age - scale_s) / scale_s
            per_s = self._ceiling * (1 + (1 - BETA) * x**3)
        else:
            per_s = self._start * 2 ** min(self._age / self._double_s, 60)
        per_s = max(per_s, LEAST_PER_S)
        slack_s = min(PACE_SLACK_S, PACE_SLACK / per_s)
        if self._rate is None:
            self._rate = TokenBucket(per_s, slack_s)
            self._rate.rest(now)
            self._updated_at = now
        else:
            self._rate.change(per_s, slack_s, now)
