"""Simulated hosts on a simulated clock, for the real HostLimit. Nothing sleeps, and all randomness is seeded.

`python -m tests.support.simulated_hosts` prints the table of docs/explanation/concurrency.md.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial

from ferry.job.limits import Limits
from ferry.ratelimit.host import HostLimit
from ferry.ratelimit.limiter import Limiter


class Timer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class World:
    """A clock and its timers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.shift = 0.0  # the error of the clock
        self._queue: list[tuple[float, int, Timer]] = []
        self._count = 0

    def clock(self) -> float:
        return self.now + self.shift

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, timer))
        return timer

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._queue)
            if timer.callback is not None:
                timer.callback()
        self.now = end


@dataclass(slots=True)
class Answer:
    """A host's answer to a request, after so many seconds."""

    after_s: float
    kind: str = "ok"  # ok, refused, reset
    retry_after_s: float | None = None


Host = Callable[[float], Answer]  # the time of a request -> its answer


def sizes(seed: int = 1) -> Callable[[], float]:
    """Return the work of one object, 1.0 on average. Sizes differ by 10x and more (log-normal)."""
    rng = random.Random(seed)
    sigma = 0.6  # 95% within 0.26 .. 2.7
    return lambda: rng.lognormvariate(-sigma * sigma / 2, sigma)


@dataclass
class Queue:
    """A host that serves `per_s` requests a second, one after the other, `base_s` away. More in flight only wait."""

    per_s: float
    base_s: float = 0.05
    work: Callable[[], float] = field(default_factory=sizes)
    free_at: float = 0.0

    def __call__(self, now: float) -> Answer:
        self.free_at = max(self.free_at, now) + self.work() / self.per_s
        return Answer(self.base_s + self.free_at - now)


@dataclass
class EventLoop:
    """A client's event loop as the limit, 0.2 ms from the host. Requests in flight share the cost of a turn."""

    world: World
    per_s: float = 4000.0
    shared: float = 0.4  # of the cost of an object that is alone in flight
    base_s: float = 0.0002
    work: Callable[[], float] = field(default_factory=sizes)
    busy: int = 0
    free_at: float = 0.0

    def __call__(self, now: float) -> Answer:
        self.busy += 1
        cost_s = (1 + self.shared / self.busy) / self.per_s
        self.free_at = max(self.free_at, now) + cost_s * self.work()
        after_s = self.base_s + self.free_at - now
        self.world.call_later(after_s, self._free)
        return Answer(after_s)

    def _free(self) -> None:
        self.busy -= 1


@dataclass
class RateLimit:
    """A host that refuses more than `per_s` with a burst of `burst` (nginx: limit_req ... nodelay)."""

    per_s: float
    burst: float = 20.0
    base_s: float = 0.05
    retry_after_s: float | None = None
    work: Callable[[], float] = field(default_factory=sizes)
    tokens: float = 0.0
    at: float = -math.inf

    def __call__(self, now: float) -> Answer:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.per_s)
        self.at = now
        if self.tokens < 1:
            return Answer(self.base_s, "refused", self.retry_after_s)
        self.tokens -= 1
        return Answer(self.base_s * (0.5 + 0.5 * self.work()))


@dataclass
class ConnectionLimit:
    """A host that refuses more than `most` at a time (nginx: limit_conn)."""

    world: World
    most: int
    base_s: float = 0.05
    work: Callable[[], float] = field(default_factory=sizes)
    busy: int = 0

    def __call__(self, now: float) -> Answer:
        if self.busy >= self.most:
            return Answer(0.005, "refused")
        self.busy += 1
        after_s = self.base_s * (0.5 + 0.5 * self.work())
        self.world.call_later(after_s, self._free)
        return Answer(after_s)

    def _free(self) -> None:
        self.busy -= 1


@dataclass
class Congested:
    """A host whose latency grows with the square of its load: beyond `best` at a time it delivers less."""

    world: World
    best: int
    base_s: float = 0.05
    work: Callable[[], float] = field(default_factory=sizes)
    busy: int = 0

    def __call__(self, now: float) -> Answer:
        self.busy += 1
        after_s = self.base_s * (1 + (self.busy / self.best) ** 2) * (0.5 + 0.5 * self.work())
        self.world.call_later(after_s, self._free)
        return Answer(after_s)

    def _free(self) -> None:
        self.busy -= 1


@dataclass
class RandomRefusals:
    """A host that refuses a share of all requests at any rate, and has no other limit."""

    share: float
    base_s: float = 0.05
    work: Callable[[], float] = field(default_factory=sizes)
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    def __call__(self, now: float) -> Answer:
        return Answer(self.base_s * (0.5 + 0.5 * self.work()), "refused" if self.rng.random() < self.share else "ok")


@dataclass
class Outage:
    """A host that is down from one time to another: it resets connections after 50 ms, or does not answer for 5 s."""

    host: Host
    down_at: float
    up_at: float
    silent: bool = False

    def __call__(self, now: float) -> Answer:
        if self.down_at <= now < self.up_at:
            return Answer(5.0 if self.silent else 0.05, "reset")
        return self.host(now)


class Run:
    """A client with endless work for some hosts, which takes each permit and records the results."""

    def __init__(
        self,
        hosts: dict[str, Host],
        *,
        limits: Limits | None = None,
        ceiling: int = 256,
        concurrency: int | None = None,
    ) -> None:
        worlds = (host.world for host in hosts.values() if isinstance(host, ConnectionLimit | Congested | EventLoop))
        self.world = next(worlds, World())
        self.limiter = Limiter(
            concurrency, ceiling, self.world.clock, limits=limits, call_later=self.world.call_later, max_pause_s=60.0
        )
        self.hosts = hosts
        self.first = next(iter(hosts))
        self.start = self.world.now
        self.ended: dict[str, list[tuple[float, str, float]]] = {name: [] for name in hosts}
        self.in_flight: dict[str, int] = dict.fromkeys(hosts, 0)
        self.changes: dict[str, list[tuple[float, int]]] = {name: [] for name in hosts}  # of requests in flight
        for name in hosts:
            self.limiter.host(name).on_room = partial(self._pump, name)
        for name in hosts:
            self._pump(name)

    def run(self, seconds: float) -> None:
        self.world.run(seconds)

    def _pump(self, name: str) -> None:
        limit = self.limiter.host(name)
        while limit.take():
            now = self.world.now
            self._change(name, 1)
            answer = self.hosts[name](now)
            self.world.call_later(answer.after_s, partial(self._end, name, limit, answer))

    def _end(self, name: str, limit: HostLimit, answer: Answer) -> None:
        at = self.world.now - self.start
        self.ended[name].append((at, answer.kind, answer.after_s))
        if answer.kind == "ok":
            limit.ok(answer.after_s)
        elif answer.kind == "refused":
            limit.overloaded(answer.retry_after_s, "HTTP 429")
        else:
            limit.overloaded(None, "connection reset", sure=False)
        self._change(name, -1)
        limit.give_back()

    def _change(self, name: str, by: int) -> None:
        self.in_flight[name] += by
        self.changes[name].append((self.world.now - self.start, self.in_flight[name]))

    # --- results

    def delivered(self, begin: float, end: float, name: str = "") -> float:
        """Return objects per second between two times."""
        return self._count("ok", begin, end, name) / (end - begin)

    def refused_share(self, begin: float, end: float, name: str = "") -> float:
        refused = self._count("refused", begin, end, name)
        return refused / max(1, refused + self._count("ok", begin, end, name))

    def latency_s(self, begin: float, end: float, name: str = "") -> float:
        found = [latency for at, kind, latency in self.ended[name or self.first]
                 if begin <= at < end and kind == "ok"]  # fmt: skip
        return sum(found) / max(1, len(found))

    def _count(self, kind: str, begin: float, end: float, name: str) -> int:
        return sum(1 for at, what, _ in self.ended[name or self.first] if what == kind and begin <= at < end)

    def converged_s(self, per_s: float, begin: float, end: float, share: float = 0.9, name: str = "") -> float:
        """Return the seconds from `begin` until it delivers this share of `per_s`, for a second and to the end."""
        step = 0.25
        at = begin
        while at < end - 1:
            if self.delivered(at, at + 1, name) >= share * per_s and self.delivered(at, end, name) >= share * per_s:
                return at - begin
            at += step
        return math.inf

    def most_in_flight(self, begin: float, end: float, name: str = "") -> int:
        return max(n for at, n in self.changes[name or self.first] if begin <= at < end)

    def mean_in_flight(self, begin: float, end: float, name: str = "") -> float:
        """Return requests in flight, by Little's law."""
        found = [latency for at, _, latency in self.ended[name or self.first] if begin <= at < end]
        return sum(found) / (end - begin)

    def fewer_than_s(self, most: int, begin: float, end: float) -> float:
        """Return the seconds from `begin` until at most so many are in flight."""
        return next((at - begin for at, n in self.changes[self.first] if begin <= at < end and n <= most), math.inf)

    def reaches_s(self, n: int) -> float:
        """Return the seconds until so many are in flight."""
        return next((at for at, in_flight in self.changes[self.first] if in_flight >= n), math.inf)


HOST = "img.example"


@dataclass(frozen=True)
class Measured:
    """One row of the table in docs/explanation/concurrency.md."""

    what: str
    converged_s: float
    share: float  # of what the host can deliver; this field and the next ones for the time that is judged
    refused: float  # share of requests
    in_flight: str  # mean, and what is needed
    most: int  # in flight at any time, from the beginning on
    latency_ms: float  # mean


def _measure(
    run: Run, what: str, per_s: float, needed: float, begin: float, end: float, quiet: float, *, share: float = 0.9
) -> Measured:
    """Measure from `begin` to `end` at a host that can deliver `per_s`, judged from `quiet` on."""
    in_flight = f"{run.mean_in_flight(quiet, end):.0f} of {needed:.0f}"
    return Measured(
        what, run.converged_s(per_s, begin, end, share), run.delivered(quiet, end) / per_s,
        run.refused_share(quiet, end), in_flight, run.most_in_flight(begin, end), run.latency_s(quiet, end) * 1000,
    )  # fmt: skip


@cache
def unlimited(base_s: float, seed: int = 1) -> Measured:
    run = Run({HOST: Queue(1e6, base_s, sizes(seed))})
    run.run(6)
    what = f"no limit, {base_s * 1000:.0f} ms away, at most 256 in flight"
    return replace(_measure(run, what, 256 / base_s, 256, 0, 6, 2), converged_s=run.reaches_s(256))


@cache
def steps(seed: int = 1) -> tuple[Run, Measured, Measured, Measured]:
    """Measure a host that serves 200/s, after 20 s 800/s, after another 20 s 100/s, 50 ms away."""
    queue = Queue(200, work=sizes(seed))
    run = Run({HOST: queue})
    run.run(20)
    queue.per_s = 800
    run.run(20)
    queue.per_s = 100
    run.run(30)
    down = _measure(run, "then 100/s", 100, 5, 40, 70, 50)
    down = replace(down, converged_s=run.fewer_than_s(12, 41, 70) + 1)
    return (
        run,
        _measure(run, "serves 200/s, 50 ms away", 200, 10, 0, 20, 5),
        _measure(run, "then 800/s", 800, 40, 20, 40, 30),
        down,
    )


@cache
def client_cap(seed: int = 1) -> Measured:
    run = Run({HOST: Queue(1300, work=sizes(seed))})
    run.run(15)
    return _measure(run, "50 ms away; Ferry itself manages 1,300/s", 1300, 65, 0, 15, 5)


@cache
def event_loop(seed: int = 1) -> Measured:
    world = World()
    run = Run({HOST: EventLoop(world, work=sizes(seed))})
    run.run(60)
    return _measure(run, "0.2 ms away; Ferry itself manages 4,000/s, less with few in flight", 4000, 8, 0, 60, 10)


@cache
def congested(best: int, seed: int = 1) -> Measured:
    world = World()
    run = Run({HOST: Congested(world, best, work=sizes(seed))})
    run.run(40)
    per_s = best / (2 * 0.05)
    what = f"slower with each in flight: best at {best}, less beyond"
    return _measure(run, what, per_s, best, 0, 40, 15)


@cache
def rate_limit(per_s: float, base_s: float, retry_after_s: float | None, seed: int = 1) -> tuple[Run, Measured]:
    run = Run({HOST: RateLimit(per_s, 20, base_s, retry_after_s, sizes(seed))})
    run.run(40)
    told = "429, Retry-After 1 s" if retry_after_s else "429"
    what = f"allows {per_s:,.0f}/s, {base_s * 1000:.0f} ms away, {told}"
    return run, _measure(run, what, per_s, per_s * base_s, 0, 40, 10)


@cache
def connection_limit(seed: int = 1) -> Measured:
    world = World()
    run = Run({HOST: ConnectionLimit(world, 20, work=sizes(seed))})
    run.run(40)
    return _measure(run, "refuses more than 20 at a time, 50 ms away (70% counts)", 400, 20, 0, 40, 10, share=0.7)


@cache
def outage(silent: bool, seed: int = 1) -> Measured:
    run = Run({HOST: Outage(Queue(800, work=sizes(seed)), 110, 130, silent)})
    run.run(50)
    what = "serves 800/s; " + ("answers nothing (5 s timeouts)" if silent else "resets connections") + " for 20 s"
    return _measure(run, what, 800, 40, 30, 50, 35)


@cache
def random_refusals(share: float, seed: int = 1) -> Measured:
    run = Run({HOST: RandomRefusals(share, work=sizes(seed), rng=random.Random(seed + 4))}, ceiling=64)
    run.run(60)
    what = f"refuses {share:.0%} at random, at most 64 in flight"
    return _measure(run, what, (1 - share) * 64 / 0.05, 64, 0, 60, 20)


def everything(seed: int = 1) -> list[Measured]:
    _, first, up, down = steps(seed)
    rate_limits = [
        rate_limit(per_s, base_s, told, seed)[1]
        for per_s in (20, 200, 1000)
        for base_s in (0.005, 0.05)
        for told in (None, 1.0)
    ]
    return [
        unlimited(0.05, seed), unlimited(0.1, seed), client_cap(seed), event_loop(seed), first, up, down,
        congested(40, seed), congested(10, seed), *rate_limits, connection_limit(seed),
        outage(silent=False, seed=seed), outage(silent=True, seed=seed), random_refusals(0.01, seed),
    ]  # fmt: skip


def table() -> list[str]:
    """Return the lines of the table in Markdown."""
    lines = [
        "| the host | converged after | then delivers | refused | in flight, of needed | most in flight | latency |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in everything():
        refused = f"{row.refused:.2%}" if row.refused else "none"
        lines.append(
            f"| {row.what} | {row.converged_s:.1f} s | {row.share:.0%} | {refused} | {row.in_flight} | {row.most} "
            f"| {row.latency_ms:.0f} ms |"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
