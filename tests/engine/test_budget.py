"""Bytes in flight: never more than the budget, in the order they were asked for, and none lost."""

from __future__ import annotations

import asyncio
import random

from tasks.engine.budget import Budget


def test_what_is_free_is_given_at_once() -> None:
    """No waiting while it lasts, and all of it comes back."""

    async def go() -> None:
        budget = Budget(10)
        assert [await budget.take(4), await budget.take(6)] == [4, 6]
        assert budget.free_bytes == 0
        budget.give_back(10)
        assert budget.free_bytes == 10

    asyncio.run(go())


def test_a_body_larger_than_the_budget_is_alone() -> None:
    """It takes all there is, and so does not wait for ever."""

    async def go() -> None:
        budget = Budget(10)
        assert await budget.take(99) == 10
        other = asyncio.create_task(budget.take(1))
        await asyncio.sleep(0)
        assert not other.done()
        budget.give_back(10)
        assert await other == 1

    asyncio.run(go())


def test_a_large_one_is_not_passed_by_small_ones() -> None:
    """First come, first served: otherwise a large body could wait for ever."""

    async def go() -> None:
        budget, order = Budget(10), list[int]()

        async def one(size: int) -> None:
            taken = await budget.take(size)
            order.append(size)
            await asyncio.sleep(0.001)
            budget.give_back(taken)

        await asyncio.gather(*(one(size) for size in (6, 9, 2, 1)))
        assert order == [6, 9, 2, 1]

    asyncio.run(go())


def test_the_budget_holds_whatever_is_cancelled() -> None:
    """Seeded: sizes, times and cancellations at random; never above the bound, and all back at the end."""

    async def go() -> None:
        rng = random.Random(3)
        budget = Budget(100)
        out = 0

        async def one() -> None:
            nonlocal out
            size = await budget.take(rng.randint(1, 120))
            out += size
            assert out <= 100
            try:
                await asyncio.sleep(rng.random() / 500)
            finally:
                out -= size
                budget.give_back(size)

        tasks = [asyncio.create_task(one()) for _ in range(300)]
        for task in rng.sample(tasks, 100):
            await asyncio.sleep(rng.random() / 1000)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (out, budget.free_bytes) == (0, 100)

    asyncio.run(go())
