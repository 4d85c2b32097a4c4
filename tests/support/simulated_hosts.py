"""Hosts of our own making on a clock of our own, driven through the real HostLimit. Nothing sleeps; all is seeded.

`python -m tests.support.simulated_hosts` prints the table of docs/explanation/concurrency.md.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial

from ferry.job.model import Limits
from ferry.ratelimit.host import HostLimit
from ferry.ratelimit.limiter import Limiter


class Timer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class World:
    """A clock and what is to happen, in order."""

    def __init__(self) -> None:
        self.now = 100.0
        self.shift = 0.0  # what the clock shows too much
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
    """What a host does with a request: an object, a refusal or nothing, after so many seconds."""

    after_s: float
    kind: str = "ok"  # ok, refused, reset
    retry_after_s: float | None = None


Host = Callable[[float], Answer]  # a request at this moment -> its answer


def sizes(seed: int = 1) -> Callable[[], float]:
    """Work of one object, 1.0 on average: sizes that differ by 10x and more (log-normal)."""
    rng = random.Random(seed)
    sigma = 0.6  # 95% within 0.26 .. 2.7
    return lambda: rng.lognormvariate(-sigma * sigma / 2, sigma)


@dataclass
class Queue:
    """A host that serves `per_s` requests a second one after the other, `base_s` away. More in flight only wait."""

    per_s: float
    base_s: float = 0.05
    work: Callable[[], float] = field(default_factory=sizes)
    free_at: float = 0.0

    def __call__(self, now: float) -> Answer:
        self.free_at = max(self.free_at, now) + self.work() / self.per_s
        return Answer(self.base_s + self.free_at - now)


@dataclass
class Turns:
    """A client's own loop beside a host 0.2 ms away: what is in flight together shares the cost of a turn."""

    world: World
    per_s: float = 4000.0
    shared: float = 0.4  # of an object's cost, when it is alone
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
class Allowance:
    """A host that refuses what is more than `per_s` with a burst of `burst` (nginx: limit_req ... nodelay)."""

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
class Places:
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
class Thrashing:
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
class Stray:
    """A host that refuses a share of all requests whatever their number, and has no other limit."""

    share: float
    base_s: float = 0.05
    work: Callable[[], float] = field(default_factory=sizes)
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    def __call__(self, now: float) -> Answer:
        return Answer(self.base_s * (0.5 + 0.5 * self.work()), "refused" if self.rng.random() < self.share else "ok")


@dataclass
class Mortal:
    """A host that is dead from one moment to another: connections are reset after 50 ms, or nothing answers for 5 s."""

    host: Host
    dies_at: float
    returns_at: float
    silent: bool = False

    def __call__(self, now: float) -> Answer:
        if self.dies_at <= now < self.returns_at:
            return Answer(5.0 if self.silent else 0.05, "reset")
        return self.host(now)


class Run:
    """A client with endless work for some hosts. It takes what it is given, and notes what becomes of it."""

    def __init__(
        self,
        hosts: dict[str, Host],
        *,
        limits: Limits | None = None,
        ceiling: int = 256,
        concurrency: int | None = None,
    ) -> None:
        worlds = (host.world for host in hosts.values() if isinstance(host, Places | Thrashing | Turns))
        self.world = next(worlds, World())
        self.limiter = Limiter(
            concurrency, ceiling, self.world.clock, limits=limits, call_later=self.world.call_later, max_pause_s=60.0
        )
        self.hosts = hosts
        self.first = next(iter(hosts))
        self.start = self.world.now
        self.ended: dict[str, list[tuple[float, str, float]]] = {name: [] for name in hosts}
        self.in_flight: dict[str, int] = dict.fromkeys(hosts, 0)
        self.changes: dict[str, list[tuple[float, int]]] = {name: [] for name in hosts}  # of what is in flight
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

    # --- what came of it

    def delivered(self, begin: float, end: float, name: str = "") -> float:
        """Objects per second between two moments."""
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
        """Seconds from `begin` until it delivers this share of what it could, and from then on does on average."""
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
        """By Little's law, from what ended."""
        found = [latency for at, _, latency in self.ended[name or self.first] if begin <= at < end]
        return sum(found) / (end - begin)

    def fewer_than_s(self, most: int, begin: float, end: float) -> float:
        """Seconds from `begin` until no more than so many are in flight."""
        return next((at - begin for at, n in self.changes[self.first] if begin <= at < end and n <= most), math.inf)

    def reaches_s(self, n: int) -> float:
        """Seconds until so many are in flight."""
        return next((at for at, in_flight in self.changes[self.first] if in_flight >= n), math.inf)


HOST = "img.example"


@dataclass(frozen=True)
class Measured:
    """What a simulation shows; the columns of the table in docs/explanation/concurrency.md."""

    what: str
    converged_s: float
    share: float  # of what the host could deliver, once it has had time
    refused: float  # share of requests, then
    in_flight: str  # then, against what is needed
    most: int  # in flight at any time
    latency_ms: float  # mean, then


def _measure(
    run: Run, what: str, per_s: float, needed: float, begin: float, end: float, quiet: float, *, share: float = 0.9
) -> Measured:
    """From `begin` to `end`, the host being able to deliver `per_s`; judged from `quiet` on."""
    in_flight = f"{run.mean_in_flight(quiet, end):.0f} of {needed:.0f}"
    return Measured(
        what, run.converged_s(per_s, begin, end, share), run.delivered(quiet, end) / per_s,
        run.refused_share(quiet, end), in_flight, run.most_in_flight(begin, end), run.latency_s(quiet, end) * 1000,
    )  # fmt: skip


@cache
def endless(base_s: float) -> Measured:
    run = Run({HOST: Queue(1e6, base_s)})
    run.run(6)
    what = f"no limit, {base_s * 1000:.0f} ms away, at most 256 in flight"
    return replace(_measure(run, what, 256 / base_s, 256, 0, 6, 2), converged_s=run.reaches_s(256))


@cache
def steps() -> tuple[Run, Measured, Measured, Measured]:
    """Capacity 200/s, after 20 s 800/s, after 20 s more 100/s; 50 ms away."""
    queue = Queue(200)
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
def client_cap() -> Measured:
    run = Run({HOST: Queue(1300)})
    run.run(15)
    return _measure(run, "50 ms away; Ferry itself manages 1,300/s", 1300, 65, 0, 15, 5)


@cache
def turns() -> Measured:
    world = World()
    run = Run({HOST: Turns(world)})
    run.run(60)
    return _measure(run, "0.2 ms away; Ferry itself manages 4,000/s, less with few in flight", 4000, 8, 0, 60, 10)


@cache
def thrashing(best: int) -> Measured:
    world = World()
    run = Run({HOST: Thrashing(world, best)})
    run.run(40)
    per_s = best / (2 * 0.05)
    what = f"slower with each in flight: best at {best}, less beyond"
    return _measure(run, what, per_s, best, 0, 40, 15)


@cache
def allowance(per_s: float, base_s: float, retry_after_s: float | None, seed: int = 1) -> tuple[Run, Measured]:
    run = Run({HOST: Allowance(per_s, 20, base_s, retry_after_s, sizes(seed))})
    run.run(40)
    told = "429, Retry-After 1 s" if retry_after_s else "429"
    what = f"allows {per_s:,.0f}/s, {base_s * 1000:.0f} ms away, {told}"
    return run, _measure(run, what, per_s, per_s * base_s, 0, 40, 10)


@cache
def places() -> Measured:
    world = World()
    run = Run({HOST: Places(world, 20)})
    run.run(40)
    return _measure(run, "refuses more than 20 at a time, 50 ms away (70% counts)", 400, 20, 0, 40, 10, share=0.7)


@cache
def mortal(silent: bool) -> Measured:
    run = Run({HOST: Mortal(Queue(800), 110, 130, silent)})
    run.run(50)
    what = "serves 800/s; " + ("answers nothing (5 s timeouts)" if silent else "resets connections") + " for 20 s"
    return _measure(run, what, 800, 40, 30, 50, 35)


@cache
def stray(share: float) -> Measured:
    run = Run({HOST: Stray(share)}, ceiling=64)
    run.run(60)
    what = f"refuses {share:.0%} at random, at most 64 in flight"
    return _measure(run, what, (1 - share) * 64 / 0.05, 64, 0, 60, 20)


def everything() -> list[Measured]:
    _, first, up, down = steps()
    allowances = [
        allowance(per_s, base_s, told)[1]
        for per_s in (20, 200, 1000)
        for base_s in (0.005, 0.05)
        for told in (None, 1.0)
    ]
    return [
        endless(0.05), endless(0.1), client_cap(), turns(), first, up, down, thrashing(40), thrashing(10), *allowances,
        places(), mortal(silent=False), mortal(silent=True), stray(0.01),
    ]  # fmt: skip


def table() -> list[str]:
    """Rows of Markdown."""
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
