"""The dispatcher: hosts do not block each other, chunks go in order, and each row begins once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from ferry.core.records import ErrorClass
from ferry.ratelimit.limiter import Limiter
from ferry.transfer import dispatcher as dispatcher_module
from ferry.transfer.chunk_queue import PendingRow
from ferry.transfer.dispatcher import Dispatcher, HostQueue
from tests.support.helpers import make_row


class Clock:
    """A clock that the test advances, with timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        entry = (self.now + delay_s, callback)
        self._timers.append(entry)

        class Handle:
            def cancel(_self) -> None:
                if entry in self._timers:
                    self._timers.remove(entry)

        return Handle()

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        for entry in [entry for entry in self._timers if entry[0] <= self.now]:
            if entry in self._timers:
                self._timers.remove(entry)
                entry[1]()


class Chunk:
    """A chunk that records which rows began and which were left pending."""

    def __init__(self, name: str, *hosts: str, slice_rows: int = 500) -> None:
        self.items = [PendingRow(make_row(f"{name}{n}", key=f"{name}{n}"), host) for n, host in enumerate(hosts)]
        self.slice_rows = slice_rows
        self.begun: list[PendingRow] = []
        self.left: list[tuple[str, str]] = []
        self.hosts: dict[int, HostQueue] = {}

    def next_rows(self) -> Sequence[PendingRow]:
        out, self.items = self.items[: self.slice_rows], self.items[self.slice_rows :]
        return out

    def rows_unread(self) -> int:
        return len(self.items)

    def rows_delayed(self) -> int:
        return 0

    def begin(self, item: PendingRow, host: HostQueue) -> None:
        item.tries += 1
        self.begun.append(item)
        self.hosts[id(item)] = host

    def leave_pending(self, item: PendingRow, why: str, *, hopeless: bool = False) -> None:
        self.left.append((item.row.key, why))

    @property
    def names(self) -> list[str]:
        return [item.row.key for item in self.begun]

    def end(self, number: int) -> None:
        """Ends row ``number`` of those that began."""
        self.hosts[id(self.begun[number])].limit.give_back()


def scene(
    test: Callable[[Dispatcher, Limiter, Clock], Coroutine[Any, Any, None]], concurrency: int = 2, limit: int = 10**9
) -> None:
    clock = Clock()
    limiter = Limiter(concurrency, 512, clock, call_later=clock.call_later, max_pause_s=60)
    left = [limit]

    def may_start() -> bool:
        left[0] -= 1
        return left[0] >= 0

    asyncio.run(test(Dispatcher(limiter, clock, may_start, 60.0), limiter, clock))


def test_each_host_has_places_of_its_own_and_rows_go_in_order() -> None:
    """Each host has its own permits, and the next row begins when one is given back."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk = Chunk("x", "a.example", "a.example", "a.example", "b.example")
        dispatcher.enter(chunk)
        assert chunk.names == ["x0", "x1", "x3"]
        chunk.end(0)
        assert chunk.names == ["x0", "x1", "x3", "x2"]

    scene(test)


def test_an_earlier_chunk_goes_first_and_the_next_fills_what_it_leaves() -> None:
    """An earlier chunk's rows go first, and a later chunk uses the permits that are left."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        first, second = Chunk("x", *["a.example"] * 3), Chunk("y", *["a.example"] * 3)
        dispatcher.enter(first)
        dispatcher.enter(second)
        assert (first.names, second.names) == (["x0", "x1"], [])
        first.end(1)  # x0 is slow
        assert first.names == ["x0", "x1", "x2"]
        first.end(2)
        second.end(0)
        assert second.names == ["y0", "y1"]

    scene(test)


def test_a_paused_host_holds_up_its_own_rows_alone() -> None:
    """Only the rows of a paused host wait for the end of the pause."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        limiter.host("a.example").overloaded(30.0, "HTTP 429", True)
        chunk = Chunk("x", "a.example", "a.example", "b.example", "a.example", "b.example")
        dispatcher.enter(chunk)
        assert chunk.names == ["x2", "x4"]
        assert dispatcher.rows_ahead < dispatcher.rows_wanted
        clock.pass_(29.0)
        assert len(chunk.begun) == 2
        clock.pass_(1.1)
        assert "x0" in chunk.names
        assert chunk.left == []

    scene(test)


def test_a_slow_host_does_not_hide_the_others() -> None:
    """Rows of other hosts begin although a slow host has nine of ten rows."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk = Chunk("x", *[f"{'b' if n % 10 == 9 else 'slow'}.example" for n in range(50_000)])
        dispatcher.enter(chunk)
        at = 0
        for _ in range(1_000):  # the slow host never answers
            while chunk.begun[at].host != "b.example":
                at += 1
            chunk.end(at)
            at += 1
        assert sum(item.host == "b.example" for item in chunk.begun) >= 1_000

    scene(test)


def test_rows_of_a_host_that_asks_for_too_long_stay_pending() -> None:
    """Rows of a host with too long a pause stay pending at once, with the reason."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        limiter.host("a.example").overloaded(3600.0, "HTTP 429", True)
        chunk = Chunk("x", "a.example", "b.example", "a.example")
        dispatcher.enter(chunk)
        assert chunk.names == ["x1"]
        assert [key for key, _ in chunk.left] == ["x0", "x2"]
        assert "Retry-After" in chunk.left[0][1]

    scene(test)


def test_a_host_that_answers_nothing_for_a_minute_holds_nobody() -> None:
    """Rows of a host without a response for a minute stay pending, and each later chunk tries it once."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk = Chunk("x", *["dead.example"] * 500, "b.example")
        limit = limiter.host("dead.example")
        dispatcher.enter(chunk)
        over = 0

        def fail(chunk: Chunk, number: int) -> None:
            limit.overloaded(None, "connection refused", False)
            dispatcher.check_pause("dead.example")
            chunk.end(number)

        while not chunk.left:
            assert clock() < 2000
            for number in range(over, len(chunk.begun)):
                if chunk.begun[number].host == "dead.example":
                    fail(chunk, number)
                over += 1
            clock.pass_(0.25)
        tries = len(chunk.begun)
        assert tries < 120
        assert len(chunk.left) == 501 - tries
        assert chunk.left[0][1].startswith("dead.example has not responded for 6")
        assert "b.example" in {item.host for item in chunk.begun}
        clock.pass_(30.0)
        later = Chunk("y", *["dead.example"] * 50)
        dispatcher.enter(later)
        assert (later.names, later.left) == (["y0"], [])
        fail(later, 0)
        assert len(later.left) == 49
        clock.pass_(30.0)
        last = Chunk("z", *["dead.example"] * 50)
        dispatcher.enter(last)
        limit.ok(0.05)
        last.end(0)
        assert not last.left
        assert len(last.begun) == 2

    scene(test)


def test_an_open_circuit_leaves_rows_and_lets_one_probe_through() -> None:
    """During a probe a host's other rows wait for its result."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        circuit = dispatcher.circuit("a.example")
        for _ in range(50):
            circuit.record_error(ErrorClass.SERVER_ERROR, 500)
        early = Chunk("x", "a.example", "a.example")
        dispatcher.enter(early)
        assert (early.names, len(early.left)) == ([], 2)
        clock.pass_(31.0)
        chunk = Chunk("y", *["a.example"] * 4)
        dispatcher.enter(chunk)
        assert (chunk.names, chunk.left) == (["y0"], [])
        circuit.record_ok()
        chunk.end(0)
        await asyncio.sleep(2 * dispatcher_module.PROBE_POLL_S)
        assert len(chunk.begun) == 3

    scene(test)


def test_a_probe_is_not_spent_where_there_is_no_place() -> None:
    """A probe begins only with a permit."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        busy = Chunk("x", "a.example", "a.example")
        dispatcher.enter(busy)
        circuit = dispatcher.circuit("a.example")
        for _ in range(50):
            circuit.record_error(ErrorClass.SERVER_ERROR, 500)
        clock.pass_(31.0)
        chunk = Chunk("y", "a.example")
        dispatcher.enter(chunk)
        assert not chunk.begun
        assert not circuit.probing
        busy.end(0)
        assert chunk.names == ["y0"]
        assert circuit.probing

    scene(test)


def test_the_run_s_limit_leaves_rows_and_gives_their_places_back() -> None:
    """`--limit 3` starts three rows, gives other permits back, and allows second tries."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk = Chunk("x", *["a.example"] * 6)
        dispatcher.enter(chunk)
        chunk.end(0)
        chunk.end(1)
        assert chunk.names == ["x0", "x1", "x2"]
        assert [key for key, _ in chunk.left] == ["x3", "x4", "x5"]
        dispatcher.retry(chunk.begun[0], chunk)
        assert chunk.names[-1] == "x0"

    scene(test, limit=3)


def test_what_a_chunk_had_queued_goes_with_it() -> None:
    """The queued rows of a chunk that ended do not begin."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        first, second = Chunk("x", *["a.example"] * 5), Chunk("y", "a.example")
        dispatcher.enter(first)
        dispatcher.enter(second)
        dispatcher.exit(first)
        first.end(0)
        first.end(1)
        assert (first.names, second.names) == (["x0", "x1"], ["y0"])

    scene(test)


def test_nothing_begins_after_a_stop() -> None:
    """After a stop no row begins, even with free permits."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk = Chunk("x", *["a.example"] * 5)
        dispatcher.enter(chunk)
        dispatcher.stop()
        chunk.end(0)
        assert len(chunk.begun) == 2

    scene(test)


def test_rows_are_read_as_they_are_needed() -> None:
    """A chunk's rows are read when they are needed, up to a limit while a host is paused."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk = Chunk("x", *["a.example"] * 100_000)
        dispatcher.enter(chunk)
        assert 100_000 - len(chunk.items) <= dispatcher_module.READY_ROWS + chunk.slice_rows
        assert dispatcher.rows_ahead >= dispatcher.rows_wanted
        limiter.host("a.example").overloaded(30.0, "HTTP 429", True)
        chunk.end(0)
        dispatcher.check_pause("a.example")
        other = Chunk("y", "b.example")
        dispatcher.enter(other)
        assert other.names == ["y0"]
        assert 100_000 - len(chunk.items) <= dispatcher_module.MAX_ROWS + chunk.slice_rows

    scene(test)


@pytest.mark.parametrize("hosts", [10_000])
def test_many_hosts_are_forgotten_again(hosts: int) -> None:
    """Neither queues nor circuit breakers are kept for all of 10,000 hosts."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk = Chunk("x", *[f"h{n}.example" for n in range(hosts)])
        dispatcher.enter(chunk)
        done = 0
        while done < hosts:
            circuit = chunk.hosts[id(chunk.begun[done])].circuit
            circuit.record_ok()
            chunk.end(done)
            done += 1
            dispatcher.refill()
        assert len(dispatcher._hosts) == 0
        assert len(dispatcher._circuits) <= dispatcher_module.CIRCUITS_KEPT

    scene(test)


def test_a_paused_run_begins_nothing_and_then_goes_on() -> None:
    """During a pause of the run no row begins, and afterwards each one begins once."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk, later = Chunk("x", *["a.example"] * 4), Chunk("y", "b.example")
        dispatcher.enter(chunk)
        assert chunk.names == ["x0", "x1"]
        dispatcher.pause(True)
        chunk.end(0)
        again = chunk.begun[0]
        dispatcher.retry(again, chunk)
        dispatcher.enter(later)
        clock.pass_(3600)
        assert chunk.names == ["x0", "x1"]
        assert not later.begun
        dispatcher.pause(False)
        assert chunk.names == ["x0", "x1", "x0"]
        assert later.names == ["y0"]
        chunk.end(1)
        chunk.end(2)
        assert chunk.names == ["x0", "x1", "x0", "x2", "x3"]
        assert not chunk.left

    scene(test)


def test_a_pause_of_the_run_is_no_silence_of_a_host_s() -> None:
    """A pause of the run does not count as a host's silence."""

    async def test(dispatcher: Dispatcher, limiter: Limiter, clock: Clock) -> None:
        chunk = Chunk("x", *["a.example"] * 3)
        dispatcher.enter(chunk)
        host = limiter.host("a.example")
        host.rest("nobody there")
        chunk.end(0)
        dispatcher.pause(True)
        clock.pass_(3600)
        limiter.rested(3600)
        dispatcher.pause(False)
        host.rest("nobody there")  # the try after the pause found nobody, either
        dispatcher.check_pause("a.example")
        assert host.silent_for_s <= 60
        assert not chunk.left
        circuit = dispatcher.circuit("b.example")
        for _ in range(50):
            circuit.record_error(ErrorClass.FORBIDDEN, 403)
        dispatcher.pause(True)
        other = Chunk("y", *["b.example"] * 3)
        dispatcher.enter(other)
        clock.pass_(3600)
        assert not other.left
        dispatcher.pause(False)
        assert other.names == ["y0"]

    scene(test)
