"""Which row begins when: one queue per host over all chunks at work, so that none waits for another's pause or end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from ferry.ratelimit import CircuitBreaker, HostLimit, Limiter
from ferry.transfer.chunk_queue import PendingRow
from ferry.transfer.stall import Wait, duration

# Rows kept ready. With several hosts more, so that a slow one's rows, which pile up, do not hide the others'.
READY_ROWS = 1_000
READY_ROWS_OF_MANY = 10_000
AHEAD_ROWS = 3_000  # unread rows beyond those: with less, another chunk is worth starting
MOST_ROWS = 20_000  # rows queued at most, while hosts that pause hold them up
PROBE_POLL_S = 0.25  # rows of a host that is being probed wait for the answer
HOSTS_KEPT = 1_000  # circuits of hosts that nothing is asked of


class Attempt(Protocol):
    """One attempt at a chunk, as the dispatcher sees it."""

    def more(self) -> Sequence[PendingRow]:
        """Items that may begin now; empty when there are none."""
        ...

    def rows_unread(self) -> int:
        """How many rows :meth:`more` may still give."""
        ...

    def rows_delayed(self) -> int:
        """How many rows wait for the time of their next try."""
        ...

    def begin(self, item: PendingRow, lane: HostQueue) -> None:
        """Try it now: a place at its host is taken, and :meth:`begin` sees to it that it is given back."""
        ...

    def leave(self, item: PendingRow, why: str) -> None:
        """The row stays pending."""
        ...


class HostQueue:
    """One host: its places, its circuit, and the rows that wait for it."""

    __slots__ = ("circuit", "held", "limit", "name", "poll", "queue")

    def __init__(self, name: str, limit: HostLimit, circuit: CircuitBreaker) -> None:
        self.name = name
        self.limit = limit
        self.circuit = circuit
        self.queue: deque[tuple[PendingRow, Attempt]] = deque()
        self.held = False  # paused or probed: its rows do not count as ready
        self.poll: asyncio.TimerHandle | None = None


class Dispatcher:
    """Begins items as their hosts have places. Lives in the loop; :attr:`rows_ahead` and :attr:`room` are for any
    thread.

    Rows of a host go in the order of their chunks, so that chunks end one after the other. A host that is paused or
    whose circuit is open holds up its own rows alone. ``permit`` says whether one more row may begin (--limit).
    """

    def __init__(
        self,
        limiter: Limiter,
        clock: Callable[[], float],
        permit: Callable[[], bool],
        patience_s: float,
    ) -> None:
        self._limiter = limiter
        self._clock = clock
        self._permit = permit
        self._patience_s = patience_s
        self._lanes: dict[str, HostQueue] = {}
        self._circuits: dict[str, CircuitBreaker] = {}
        self._attempts: dict[Attempt, None] = {}
        self._queued = 0
        self._ready = 0  # queued, and not held up
        self._wanted = READY_ROWS
        self._refilling = False
        self.paused = False
        self.stopped = False

    @property
    def rows_ahead(self) -> int:
        """Rows that could begin, or that chunks at work will give."""
        return self._ready + sum(attempt.rows_unread() for attempt in list(self._attempts))

    @property
    def room(self) -> int:
        """Rows ahead from which on it takes no further chunk; 0 while hosts that pause hold up too many."""
        return self._wanted + AHEAD_ROWS if self._queued < MOST_ROWS else 0

    def waits(self) -> list[Wait]:
        """What queued and delayed rows wait for. From any thread."""
        found = [Wait("the time of their next try", sum(a.rows_delayed() for a in list(self._attempts)), True)]
        for lane in list(self._lanes.values()):
            paused_s = lane.limit.snapshot().paused_for_s
            if paused_s:
                found.append(
                    Wait(f"the end of the pause of {lane.name} (in {duration(paused_s)})", len(lane.queue), True)
                )
            else:
                found.append(Wait(f"a place at {lane.name}", len(lane.queue), lane.limit.will_call))
        return found

    def circuit(self, host: str) -> CircuitBreaker:
        found = self._circuits.get(host)
        if found is None:
            if len(self._circuits) >= HOSTS_KEPT:
                self._forget_circuits()
            found = self._circuits[host] = CircuitBreaker(host, self._clock)
        return found

    def enter(self, attempt: Attempt) -> None:
        """A chunk begins."""
        self._attempts[attempt] = None
        self.feed(attempt)  # whatever else is queued: it may be for hosts that pause
        self.refill()

    def exit(self, attempt: Attempt) -> None:
        """A chunk ends; what it had queued is forgotten."""
        self._attempts.pop(attempt, None)
        for name, lane in list(self._lanes.items()):
            kept = [entry for entry in lane.queue if entry[1] is not attempt]
            self._count(lane, len(kept) - len(lane.queue))
            lane.queue = deque(kept)
            if not kept and lane.poll is None:
                del self._lanes[name]
        self.refill()

    def again(self, item: PendingRow, attempt: Attempt) -> None:
        """An item whose delay is over: before all others, so that its chunk ends."""
        lane = self._lane(item.host)
        lane.queue.appendleft((item, attempt))
        self._count(lane, 1)
        self._pump(lane)

    def look(self, host: str) -> None:
        """A host answered with an error: is it paused now? Then other rows take the turn of its own."""
        lane = self._lanes.get(host)
        if lane is None:
            return
        if lane.limit.silent_for_s > self._patience_s:
            self._pump(lane)  # its rows are not to wait for ever
        elif lane.limit.paused_for_s > 0 and not lane.held:
            self._hold(lane, True)
            self.refill()

    def pause(self, paused: bool) -> None:
        """Nothing more begins, until it is called once more; what falls due meanwhile waits in its lane."""
        self.paused = paused
        for lane in list(self._lanes.values()):
            self._pump(lane)

    def stop(self) -> None:
        """Nothing more begins."""
        self.stopped = True

    def refill(self) -> None:
        """Asks the chunks, first to last, for rows while few are ready."""
        if self._refilling or self.stopped:
            return
        self._refilling = True
        try:
            for attempt in list(self._attempts):
                while self._ready < self._wanted and self._queued < MOST_ROWS and (items := attempt.more()):
                    self._add(items, attempt)
                if self._ready >= self._wanted:
                    return
        finally:
            self._refilling = False

    def feed(self, attempt: Attempt) -> None:
        """A chunk of which nothing is under way: it gets its turn, however much else is ready."""
        if not self.stopped and attempt in self._attempts and (items := attempt.more()):
            self._add(items, attempt)

    def _add(self, items: Sequence[PendingRow], attempt: Attempt) -> None:
        touched: dict[str, HostQueue] = {}
        for item in items:
            lane = touched.get(item.host)
            if lane is None:
                lane = touched[item.host] = self._lane(item.host)
            lane.queue.append((item, attempt))
            self._count(lane, 1)
        for lane in touched.values():
            self._pump(lane)

    def _lane(self, host: str) -> HostQueue:
        lane = self._lanes.get(host)
        if lane is None:
            limit = self._limiter.host(host)
            lane = self._lanes[host] = HostQueue(host, limit, self.circuit(host))
            limit.on_room = lambda: self._pump(lane)
            if len(self._circuits) > 1:
                self._wanted = READY_ROWS_OF_MANY
        return lane

    def _count(self, lane: HostQueue, more: int) -> None:
        self._queued += more
        if not lane.held:
            self._ready += more

    def _hold(self, lane: HostQueue, held: bool) -> None:
        if held is not lane.held:
            self._ready += -len(lane.queue) if held else len(lane.queue)
            lane.held = held

    def _pump(self, lane: HostQueue) -> None:
        """Begins rows of one host while it has places."""
        queue, limit, circuit = lane.queue, lane.limit, lane.circuit
        while queue and not self.stopped and not self.paused:
            item, attempt = queue[0]
            if circuit.open_reason is not None and not circuit.probe_due:
                if circuit.probing:
                    self._hold(lane, True)
                    if lane.poll is None:
                        lane.poll = asyncio.get_running_loop().call_later(PROBE_POLL_S, self._polled, lane)
                    return
                self._leave(lane, circuit.open_reason)
                continue
            if limit.paused_for_s > self._patience_s:
                self._leave(lane, f"{lane.name} asks to be left alone for {limit.paused_for_s:,.0f} s (Retry-After)")
                continue
            if limit.silent_for_s > self._patience_s and limit.paused_for_s > 0:  # else: one row may try it
                self._leave(lane, f"nobody has answered at {lane.name} for {limit.silent_for_s:,.0f} s")
                continue
            if not limit.take():
                self._hold(lane, limit.paused_for_s > 0)
                return
            if circuit.open_reason is not None:
                circuit.may_probe()
            self._hold(lane, False)
            queue.popleft()
            self._count(lane, -1)
            if not item.tries and not self._permit():
                limit.give_back()
                attempt.leave(item, "the run's --limit is reached")
                continue
            attempt.begin(item, lane)
        if self._ready < self._wanted:
            self.refill()
        if not lane.queue and lane.poll is None and self._lanes.get(lane.name) is lane:
            self._hold(lane, False)
            del self._lanes[lane.name]

    def _leave(self, lane: HostQueue, why: str) -> None:
        item, attempt = lane.queue.popleft()
        self._count(lane, -1)
        attempt.leave(item, why)

    def _polled(self, lane: HostQueue) -> None:
        lane.poll = None
        self._pump(lane)

    def _forget_circuits(self) -> None:
        """The oldest half of those that are closed and that no row waits for: they have not much to remember."""
        idle = [
            host for host, circuit in self._circuits.items() if circuit.open_reason is None and host not in self._lanes
        ]
        for host in idle[: len(idle) // 2 + 1]:
            del self._circuits[host]
