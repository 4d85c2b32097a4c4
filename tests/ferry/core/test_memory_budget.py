"""Memory budget and quota: limits hold, hosts share fairly, and everything is released."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from ferry.core.errors import ObjectError
from ferry.core.memory_budget import Budget
from ferry.core.quota import Quota, Share, Space

KIB, MIB = 1 << 10, 1 << 20  # not imported from Ferry: docs/explanation/concurrency.md states these amounts


def waits(work: Coroutine[Any, Any, Share]) -> asyncio.Task[Share]:
    return asyncio.create_task(work)


async def turn() -> None:
    """Let every task that is ready run."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_what_is_free_is_given_at_once() -> None:
    """A request within the free capacity does not wait, and each share is released exactly once."""

    async def go() -> None:
        quota = Quota(100)
        first, second = await quota.take("a", 20), await quota.take("b", 30)
        assert (first.size, second.size, quota.free) == (20, 30, 50)
        first.end()
        first.end()
        second.shrink(10)
        assert quota.free == 90
        second.end()
        assert quota.free == 100

    asyncio.run(go())


@pytest.mark.parametrize(
    ("others", "part"),
    [(0, 1 / 2), (1, 1 / 3), (3, 1 / 5), (15, 1 / 17)],
)
def test_a_host_holds_no_more_than_is_left(others: int, part: float) -> None:
    """A host holds at most half, and less beside other hosts; a new host always finds free capacity."""

    async def go() -> None:
        size, units = 100 * KIB, 510
        quota = Quota(units * size)
        hosts = [f"slow-{n}" for n in range(others + 1)]
        tasks = [waits(quota.take(host, size)) for _ in range(units // 2 + 10) for host in hosts]
        await turn()
        held = Counter(host for host, task in zip(hosts * units, tasks, strict=False) if task.done())
        for host in hosts:
            assert held[host] == pytest.approx(units * part, abs=1)
        assert waits_for_nothing(quota, "healthy", 256 * KIB)
        for task in tasks:
            task.cancel()

    asyncio.run(go())


def waits_for_nothing(quota: Quota, host: str, size: int) -> bool:
    share = quota.offer(host, size)
    if share is not None:
        share.end()
    return share is not None


def test_more_than_a_half_is_a_half() -> None:
    """A request for more than the capacity gets half of it; a second one of the same host waits for the first."""

    async def go() -> None:
        quota = Quota(10 * MIB)
        first = await quota.take("a", 99 * MIB)
        assert first.size == 5 * MIB
        second = waits(quota.take("a", 99 * MIB))
        await turn()
        assert not second.done()
        first.end()
        assert (await second).size == 5 * MIB

    asyncio.run(go())


def test_hosts_take_turns() -> None:
    """A host that has just been served comes after a host that still waits."""

    async def go() -> None:
        quota = Quota(100)
        (_, _, last) = [await quota.take(host, size) for host, size in (("x", 50), ("y", 25), ("z", 12))]
        one, two, other = (waits(quota.take(host, 10)) for host in "aab")
        await turn()
        last.end()
        await turn()
        assert [task.done() for task in (one, two, other)] == [True, False, False]
        one.result().end()
        await turn()
        assert [task.done() for task in (two, other)] == [False, True]
        other.result().end()
        await two

    asyncio.run(go())


def test_who_waits() -> None:
    """Waiting requests are counted per host until they are granted or cancelled."""

    async def go() -> None:
        quota = Quota(100)
        held = [await quota.take(host, 30) for host in "ab"]
        assert (quota.waiting, quota.waiting_of()) == (0, {})
        tasks = [waits(quota.take(host, 30)) for host in "aab"]
        await turn()
        assert (quota.waiting, quota.waiting_of()) == (3, {"a": 2, "b": 1})
        tasks[0].cancel()
        await turn()
        assert (quota.waiting, quota.waiting_of()) == (2, {"a": 1, "b": 1})
        for share in held:
            share.end()
        await turn()
        assert (quota.waiting, quota.waiting_of()) == (0, {})
        for task in tasks[1:]:
            (await task).end()
        assert quota.free == 100

    asyncio.run(go())


def test_growth_never_waits() -> None:
    """A share grows at once or not at all, and never past the limit of its host."""

    async def go() -> None:
        quota = Quota(8 * MIB)
        share = await quota.take("a", 64 * KIB)
        assert share.grow(MIB)
        assert share.grow(4 * MIB)
        assert not share.grow(4 * MIB + 1)
        assert share.size == 4 * MIB
        other = await quota.take("b", 64 * KIB)
        assert other.grow(2 * MIB)
        assert not other.grow(3 * MIB)
        assert share.grow(4 * MIB), "a share may grow to its present size"
        share.end()
        assert other.grow(3 * MIB)

    asyncio.run(go())


def test_one_that_is_cancelled_while_it_waits_is_waited_for_no_more() -> None:
    """If a waiting request is cancelled, the next request of its host is granted at once."""

    async def go() -> None:
        quota = Quota(100)
        held = [await quota.take("a", 20), await quota.take("a", 20)]
        first, later = waits(quota.take("a", 30)), waits(quota.take("a", 10))
        await turn()
        assert not later.done()
        first.cancel()
        await turn()
        assert first.cancelled()
        assert later.done()
        assert quota.waiting == 0
        for share in (*held, later.result()):
            share.end()
        assert quota.free == 100

    asyncio.run(go())


def test_the_only_one_of_a_host_that_is_cancelled_leaves_no_trace() -> None:
    """If the only request of a host is cancelled, the host leaves the queue and other hosts are served."""

    async def go() -> None:
        quota = Quota(100)
        held = [await quota.take("a", 50), await quota.take("b", 20)]
        alone, other = waits(quota.take("c", 30)), waits(quota.take("d", 30))
        await turn()
        alone.cancel()
        await turn()
        assert quota.waiting_of() == {"d": 1}
        for share in held:
            share.end()
        await turn()
        assert other.done()
        (await quota.take("c", 30)).end()
        other.result().end()
        assert quota.free == 100

    asyncio.run(go())


def test_one_that_is_cancelled_as_it_is_granted_gives_back() -> None:
    """A request that is cancelled at the moment of its grant releases its share."""

    async def go() -> None:
        quota = Quota(100)
        held = await quota.take("a", 50)
        task = waits(quota.take("a", 40))
        await turn()
        held.end()
        assert quota.free == 60
        task.cancel()
        await turn()
        assert task.cancelled()
        assert (quota.free, quota.waiting) == (100, 0)

    asyncio.run(go())


def test_the_quota_holds_whatever_is_cancelled() -> None:
    """With random sizes, growth and cancellations (seeded), the quota stays within its capacity and ends up free."""

    async def go() -> None:
        rng = random.Random(3)
        quota = Quota(100 * MIB)

        async def one() -> None:
            host = f"host-{rng.randrange(5)}"
            share = await quota.take(host, rng.choice([0, 10, 77_000, MIB, 30 * MIB, 200 * MIB]))
            assert quota.free >= 0
            try:
                await asyncio.sleep(rng.random() / 500)
                share.grow(share.size * 2)
                assert quota.free >= 0
                await asyncio.sleep(rng.random() / 500)
            finally:
                share.end()

        tasks = [asyncio.create_task(one()) for _ in range(500)]
        for task in rng.sample(tasks, 150):
            await asyncio.sleep(rng.random() / 1000)
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
        assert (quota.free, quota.waiting, quota._held) == (100 * MIB, 0, {})

    asyncio.run(go())


def test_a_quota_that_grows() -> None:
    """A larger capacity serves waiting requests at once."""

    async def go() -> None:
        quota = Quota(100)
        held = await quota.take("a", 50)
        more = waits(quota.take("a", 20))
        await turn()
        assert not more.done()
        quota.resize(200)
        assert (await asyncio.wait_for(more, 60)).size == 20
        held.end()

    asyncio.run(go())


def test_nothing_is_held_of_a_host_that_took_nothing() -> None:
    """A share of size 0 leaves no entry for its host."""

    async def go() -> None:
        quota = Quota(100)
        (await quota.take("a", 0)).end()
        assert (quota.free, quota._held) == (100, {})

    asyncio.run(go())


def test_a_quota_that_shrinks() -> None:
    """A smaller capacity takes no share back; a request for more than half of it gets half."""

    async def go() -> None:
        quota = Quota(100 * MIB)
        first = await quota.take("a", 45 * MIB)
        more = waits(quota.take("b", 40 * MIB))
        await turn()
        quota.resize(40 * MIB)
        assert quota.free == -5 * MIB
        first.end()
        assert (await asyncio.wait_for(more, 10)).size == 20 * MIB

    asyncio.run(go())


@pytest.mark.parametrize(
    ("capacity", "length", "takes"),
    [
        (128 * MIB, 0, 0),
        (128 * MIB, 256 * KIB, 256 * KIB),
        (128 * MIB, 256 * KIB + 1, 64 * KIB),
        (128 * MIB, None, 64 * KIB),
        (128 * MIB, 8 * MIB, 64 * KIB),
        (128 * MIB, 8 * MIB + 1, None),
        (16 * MIB, 2 * MIB, 64 * KIB),
        (16 * MIB, 2 * MIB + 1, None),
        (MIB, 128 * KIB, 128 * KIB),
        (MIB, 128 * KIB + 1, None),
        (256 * KIB, None, 32 * KIB),
    ],
)
def test_what_a_body_takes_before_it_comes(capacity: int, length: int | None, takes: int | None) -> None:
    """A body reserves its length if small, else 64 KiB; over 8 MiB or an eighth of the budget, a spool file instead."""

    async def go() -> None:
        budget = Budget(capacity)
        files = max(2, capacity // (8 * MIB))
        assert budget.files.free == files
        share = await budget.take("a", length)
        assert (capacity - budget.memory.free, files - budget.files.free) == ((takes or 0), takes is None)
        share.end()

    asyncio.run(go())


def test_a_budget_that_is_given_another_size() -> None:
    """resize changes memory, spool files and the largest body in memory; at least two spool files are allowed."""
    budget = Budget(128 * MIB)
    for capacity, files, in_memory in ((32, 4, 4), (256, 32, 8), (4, 2, 0.5)):
        budget.resize(capacity * MIB)
        assert (budget.memory.free, budget.files.free) == (capacity * MIB, files)
        assert budget.in_memory_bytes == in_memory * MIB


def test_uploads_in_parts() -> None:
    """An upload gets 4 parts if memory is free, else 1; uploads with 1 part run one at a time."""

    async def go() -> None:
        budget = Budget(128 * MIB)
        async with budget.upload_in_parts() as first:
            assert budget.memory.free == (128 - 5 * 8) * MIB
            async with budget.upload_in_parts() as second:
                assert (first, second) == (4, 1)

                async def third() -> int:
                    async with budget.upload_in_parts() as parts:
                        return parts

                later = asyncio.create_task(third())
                await turn()
                assert not later.done()
            assert await later == 1
        assert budget.memory.free == 128 * MIB

    asyncio.run(go())


def test_space_is_given_whole_and_in_order() -> None:
    """A request of the whole capacity gets it, and no smaller one that comes after it overtakes it."""

    async def go() -> None:
        space = Space(100)
        first, second = await space.take("a", 60), await space.take("c", 30)
        whole = waits(space.take("b", 100))
        small = waits(space.take("a", 10))
        await turn()
        second.end()
        await turn()
        assert (whole.done(), small.done()) == (False, False), "the small one would fit"
        first.end()
        await turn()
        assert (whole.result().size, small.done()) == (100, False)
        whole.result().end()
        await turn()
        assert (small.result().size, space.free) == (10, 90)

    asyncio.run(go())


@pytest.mark.parametrize(("length", "takes"), [(20 * MIB, 20 * MIB), (None, 30 * MIB)])
def test_a_spool_file_takes_space(length: int | None, takes: int) -> None:
    """As much as the body's length, or what a body may have at most; the end of the share gives both back."""

    async def go() -> None:
        budget = Budget(160 * MIB, spool_bytes=100 * MIB, max_bytes=30 * MIB)
        files = budget.files.free
        share = await budget.take_file("a", length)
        assert (budget.files.free, budget.spool.free) == (files - 1, 100 * MIB - takes)
        share.end()
        share.end()
        assert (budget.files.free, budget.spool.free) == (files, 100 * MIB)
        with pytest.raises(ObjectError, match="spool_bytes"):
            await budget.take_file("a", 100 * MIB + 1)
        assert budget.files.free == files

    asyncio.run(go())


def test_one_that_is_cancelled_while_it_waits_for_space_has_no_file() -> None:
    """A body that is given up gives its place in both queues back."""

    async def go() -> None:
        budget = Budget(160 * MIB, spool_bytes=30 * MIB)
        files = budget.files.free
        first = await budget.take_file("a", 20 * MIB)
        second = waits(budget.take_file("a", 20 * MIB))
        await turn()
        second.cancel()
        await turn()
        first.end()
        assert (budget.files.free, budget.spool.free) == (files, 30 * MIB)

    asyncio.run(go())
