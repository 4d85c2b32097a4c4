"""Dispatcher: decides which row begins next, with one queue per host over all running chunks.

No row waits for another host's pause, or for another chunk's end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from ferry.ratelimit import CircuitBreaker, HostLimit, Limiter
from ferry.transfer.chunk_queue import PendingRow
from ferry.transfer.stall import Wait, duration

# Rows kept ready. With several hosts there are more: a slow host's rows pile up, and must not hide the other hosts'.
READY_ROWS = 1_000
READY_ROWS_OF_MANY = 10_000
AHEAD_ROWS = 3_000  # unread rows on top of the ready ones; with fewer, another chunk is worth starting
MAX_ROWS = 20_000  # rows queued at most, while paused hosts hold them up
PROBE_POLL_S = 0.25  # how often a host that is being probed is checked for the probe's end
SILENT_FOR_S = 90.0  # longer than the pause between two tries of a host that does not answer
CIRCUITS_KEPT = 1_000  # circuit breakers, also of hosts without rows


class Attempt(Protocol):
    """One attempt at a chunk, as the dispatcher sees it."""

    def next_rows(self) -> Sequence[PendingRow]:
        """Returns rows that may begin now, perhaps none."""
        ...

    def rows_unread(self) -> int:
        """Returns how many rows :meth:`next_rows` may still return."""
        ...

    def rows_delayed(self) -> int:
        """Returns how many rows wait for the time of their next try."""
        ...

    def begin(self, item: PendingRow, host: HostQueue) -> None:
        """Starts a try of the row, whose permit is taken already, and gives the permit back afterwards."""
        ...

    def leave_pending(self, item: PendingRow, why: str, *, hopeless: bool = False) -> None:
        """Leaves the row pending. ``hopeless``: its host has never answered, and no other try of the chunk helps."""
        ...


class HostQueue:
    """One host: its limit, its circuit breaker, and the rows that wait for it."""

    __slots__ = ("circuit", "held", "limit", "name", "poll", "queue")

    def __init__(self, name: str, limit: HostLimit, circuit: CircuitBreaker) -> None:
        self.name = name
        self.limit = limit
        self.circuit = circuit
        self.queue: deque[tuple[PendingRow, Attempt]] = deque()
        self.held = False  # the host is paused or being probed: its rows do not count as ready
        self.poll: asyncio.TimerHandle | None = None


class Dispatcher:
    """Begins rows as their hosts' limits allow, in the event loop's thread.

    Rows of a host begin in the order of their chunks, so that chunks end one after the other. A host that is paused, or
    whose circuit is open, holds up its own rows only. ``may_start`` returns whether one more row may begin (`--limit`).
    """

    def __init__(
        self,
        limiter: Limiter,
        clock: Callable[[], float],
        may_start: Callable[[], bool],
        max_pause_s: float,
    ) -> None:
        self._limiter = limiter
        self._clock = clock
        self._may_start = may_start
        self._patience_s = max_pause_s
        self._hosts: dict[str, HostQueue] = {}
        self._circuits: dict[str, CircuitBreaker] = {}
        self._attempts: dict[Attempt, None] = {}
        self._queued = 0
        self._ready = 0  # queued rows of hosts that are not held
        self._ready_wanted = READY_ROWS
        self._refilling = False
        self.paused = False
        self.stopped = False
        self._silent: dict[str, tuple[float, str]] = {}  # hosts that have never answered: their last try, and its end

    @property
    def rows_ahead(self) -> int:
        """Rows that could begin, or that running chunks have not read yet. From any thread."""
        return self._ready + sum(attempt.rows_unread() for attempt in list(self._attempts))

    @property
    def rows_wanted(self) -> int:
        """Rows ahead with which no further chunk is started; 0 while paused hosts hold up too many. From any thread."""
        return self._ready_wanted + AHEAD_ROWS if self._queued < MAX_ROWS else 0

    def waits(self) -> list[Wait]:
        """Returns what queued and delayed rows wait for. From any thread."""
        found = [Wait("the time of their next try", sum(a.rows_delayed() for a in list(self._attempts)), True)]
        for host in list(self._hosts.values()):
            paused_s = host.limit.snapshot().paused_for_s
            if paused_s:
                found.append(
                    Wait(f"the end of the pause of {host.name} (in {duration(paused_s)})", len(host.queue), True)
                )
            else:
                found.append(Wait(f"a permit for {host.name}", len(host.queue), host.limit.will_call))
        return found

    def circuit(self, host: str) -> CircuitBreaker:
        """Returns the host's circuit breaker."""
        found = self._circuits.get(host)
        if found is None:
            if len(self._circuits) >= CIRCUITS_KEPT:
                self._delete_old_circuits()
            found = self._circuits[host] = CircuitBreaker(host, self._clock)
        return found

    def enter(self, attempt: Attempt) -> None:
        """Adds a chunk that begins."""
        self._attempts[attempt] = None
        self.feed(attempt)  # at once, since the rows that are queued may be for paused hosts
        self.refill()

    def exit(self, attempt: Attempt) -> None:
        """Removes a chunk that ends, with its queued rows."""
        self._attempts.pop(attempt, None)
        for name, host in list(self._hosts.items()):
            kept = [entry for entry in host.queue if entry[1] is not attempt]
            self._count(host, len(kept) - len(host.queue))
            host.queue = deque(kept)
            if not kept and host.poll is None:
                del self._hosts[name]
        self.refill()

    def retry(self, item: PendingRow, attempt: Attempt) -> None:
        """Queues a row whose delay has ended before all others, so that its chunk ends."""
        host = self._host(item.host)
        host.queue.appendleft((item, attempt))
        self._count(host, 1)
        self._start_rows(host)

    def check_pause(self, name: str) -> None:
        """Lets other hosts' rows begin if this host is paused; to be called after an error of the host."""
        host = self._hosts.get(name)
        if host is None:
            return
        if host.limit.silent_for_s > self._patience_s:
            self._start_rows(host)  # which leaves the rows pending, so that they do not wait for ever
        elif host.limit.paused_for_s > 0 and not host.held:
            self._hold(host, True)
            self.refill()

    def pause(self, paused: bool) -> None:
        """Stops starting rows, or starts them again; rows whose delay ends during the pause are queued."""
        self.paused = paused
        for host in list(self._hosts.values()):
            self._start_rows(host)

    def stop(self) -> None:
        """Stops starting rows for good."""
        self.stopped = True

    def refill(self) -> None:
        """Takes rows from the chunks, first to last, while few are ready."""
        if self._refilling or self.stopped:
            return
        self._refilling = True
        try:
            for attempt in list(self._attempts):
                while self._ready < self._ready_wanted and self._queued < MAX_ROWS and (items := attempt.next_rows()):
                    self._add(items, attempt)
                if self._ready >= self._ready_wanted:
                    return
        finally:
            self._refilling = False

    def feed(self, attempt: Attempt) -> None:
        """Takes rows from a chunk without a row in progress, however many other rows are ready."""
        if not self.stopped and attempt in self._attempts and (items := attempt.next_rows()):
            self._add(items, attempt)

    def _add(self, items: Sequence[PendingRow], attempt: Attempt) -> None:
        touched: dict[str, HostQueue] = {}
        for item in items:
            host = touched.get(item.host)
            if host is None:
                host = touched[item.host] = self._host(item.host)
            host.queue.append((item, attempt))
            self._count(host, 1)
        for host in touched.values():
            self._start_rows(host)

    def _host(self, name: str) -> HostQueue:
        host = self._hosts.get(name)
        if host is None:
            limit = self._limiter.host(name)
            host = self._hosts[name] = HostQueue(name, limit, self.circuit(name))
            limit.on_room = lambda: self._start_rows(host)
            if len(self._circuits) > 1:
                self._ready_wanted = READY_ROWS_OF_MANY
        return host

    def _count(self, host: HostQueue, more: int) -> None:
        self._queued += more
        if not host.held:
            self._ready += more

    def _hold(self, host: HostQueue, held: bool) -> None:
        if held is not host.held:
            self._ready += -len(host.queue) if held else len(host.queue)
            host.held = held

    def _start_rows(self, host: HostQueue) -> None:
        """Begins rows of one host while it has permits, and leaves rows pending that would wait too long."""
        queue, limit, circuit = host.queue, host.limit, host.circuit
        while queue and not self.stopped and not self.paused:
            item, attempt = queue[0]
            if circuit.open_reason is not None and not circuit.probe_due:
                if circuit.probing:
                    self._hold(host, True)
                    if host.poll is None:
                        host.poll = asyncio.get_running_loop().call_later(PROBE_POLL_S, self._end_poll, host)
                    return
                self._leave_pending(host, circuit.open_reason, hopeless=circuit.is_hopeless)
                continue
            if limit.paused_for_s > self._patience_s:
                self._leave_pending(host, f"{host.name} sent Retry-After: {limit.paused_for_s:,.0f} s")
                continue
            if limit.silent_for_s > self._patience_s and limit.paused_for_s > 0:  # without a pause one row may try it
                self._leave_pending(host, f"{host.name} has not responded for {limit.silent_for_s:,.0f} s")
                continue
            if not limit.take():
                self._hold(host, limit.paused_for_s > 0)
                return
            if circuit.open_reason is not None:
                circuit.may_probe()
            self._hold(host, False)
            queue.popleft()
            self._count(host, -1)
            if not item.tries and not self._may_start():
                limit.give_back()
                attempt.leave_pending(item, "the run's --limit is reached")
                continue
            attempt.begin(item, host)
        if self._ready < self._ready_wanted:
            self.refill()
        if not host.queue and host.poll is None and self._hosts.get(host.name) is host:
            self._hold(host, False)
            del self._hosts[host.name]

    def _leave_pending(self, host: HostQueue, why: str, *, hopeless: bool = False) -> None:
        item, attempt = host.queue.popleft()
        self._count(host, -1)
        attempt.leave_pending(item, why, hopeless=hopeless)

    @property
    def silent(self) -> dict[str, str]:
        """Hosts that were tried lately and have never answered, with what they do instead. From any thread."""
        since = self._clock() - SILENT_FOR_S
        return {name: what for name, (at, what) in list(self._silent.items()) if at >= since}

    def note_response(self, host: HostQueue) -> None:
        """Keeps :attr:`silent` up to date after each try."""
        if silence := host.circuit.silence:
            self._silent[host.name] = self._clock(), silence
        elif self._silent:
            self._silent.pop(host.name, None)

    def _end_poll(self, host: HostQueue) -> None:
        host.poll = None
        self._start_rows(host)

    def _delete_old_circuits(self) -> None:
        """Deletes the older half of the closed circuit breakers for whose hosts no row waits."""
        idle = [
            host for host, circuit in self._circuits.items() if circuit.open_reason is None and host not in self._hosts
        ]
        for host in idle[: len(idle) // 2 + 1]:
            del self._circuits[host]
