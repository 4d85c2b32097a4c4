"""How many bytes of bodies may lie in memory at once: what bounds the process, whatever the objects' sizes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Budget:
    """Bytes, given out in the order they were asked for. One event loop's; not for several threads.

    A body of more than the whole budget takes all of it, and so is alone.
    """

    __slots__ = ("_capacity", "_free", "_waiters")

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._free = capacity_bytes
        self._waiters: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    @property
    def free_bytes(self) -> int:
        return self._free

    async def take(self, size: int) -> int:
        """Waits until ``size`` bytes are free; returns what is to be given back. Cancelled, it leaves no trace."""
        size = min(size, self._capacity)
        if not self._waiters and size <= self._free:
            self._free -= size
            return size
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = size
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(size)
            else:
                self._waiters.pop(future, None)
                self._hand_over()
            raise
        return size

    def resize(self, capacity_bytes: int) -> None:
        """What is out stays out; nothing more goes until it is back where that is too much."""
        self._free += capacity_bytes - self._capacity
        self._capacity = capacity_bytes
        self._hand_over()

    def give_back(self, size: int) -> None:
        self._free += size
        if self._waiters:
            self._hand_over()

    def _hand_over(self) -> None:
        while self._waiters:
            future, size = next(iter(self._waiters.items()))
            if size > self._free and self._free < self._capacity:  # all of it: asked for when there was more
                return
            del self._waiters[future]
            if not future.done():
                self._free -= size
                future.set_result(None)
