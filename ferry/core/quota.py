"""A quantity that hosts share, so that none of them can take it from the others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Share:
    """What one body holds of a quota, until :meth:`end`."""

    __slots__ = ("_host", "quota", "size")

    def __init__(self, quota: Quota, host: str, size: int) -> None:
        self.quota = quota
        self._host = host
        self.size = size

    def grow(self, size: int) -> bool:
        """Becomes ``size`` if that is possible at once. Never waits: who holds a share must not."""
        if size > self.size:
            if self.quota.offer(self._host, size - self.size) is None:
                return False
            self.size = size
        return True

    def shrink(self, size: int) -> None:
        """Gives back what is more than ``size``."""
        if size < self.size:
            self.quota.give_back(self._host, self.size - size)
            self.size = size

    def end(self) -> None:
        """Gives everything back. Safe to call twice."""
        self.shrink(0)


class Quota:
    """Bytes or files, given out to hosts. One event loop's; not for several threads.

    A host may hold as much as is left free ("dynamic thresholds": A. Choudhury, E. Hahne, IEEE/ACM Transactions on
    Networking 6, 1998). One host alone holds a half at most, two hosts a third each, and something is always left for
    another one. Requests of one host go in their order, and hosts take turns.

    Requests are small beside the quota: what a body needs beyond its first bytes it gets by :meth:`Share.grow`, or not.
    """

    __slots__ = ("_capacity", "_free", "_held", "_waiting")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = capacity
        self._held: dict[str, int] = {}
        self._waiting: OrderedDict[str, dict[asyncio.Future[int], int]] = OrderedDict()

    @property
    def free(self) -> int:
        return self._free

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._waiting.values()))

    def waiting_of(self) -> dict[str, int]:
        """How many requests of each host wait. From any thread."""
        return {host: len(requests) for host, requests in list(self._waiting.items())}

    async def take(self, host: str, size: int) -> Share:
        """Waits for a share. A request for more than half of the quota is one for the half.

        Cancelled, it leaves no trace.
        """
        size = self._bounded(size)
        if host not in self._waiting and self._fits(host, size):
            return self._grant(host, size)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(host, {})[future] = size
        try:
            return Share(self, host, await future)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(host, future.result())
            else:
                requests = self._waiting.get(host, {})
                requests.pop(future, None)  # it may have had its turn just now
                if not requests:
                    self._waiting.pop(host, None)
                self._grant_waiting()
            raise

    def offer(self, host: str, size: int) -> Share | None:
        """A share at once, or None."""
        return self._grant(host, size) if self._fits(host, size) else None

    def give_back(self, host: str, size: int) -> None:
        self._free += size
        left = self._held[host] - size
        if left:
            self._held[host] = left
        else:
            del self._held[host]
        self._grant_waiting()

    def resize(self, capacity: int) -> None:
        """What is out stays out; nothing more goes until it is back where that is too much."""
        self._free += capacity - self._capacity
        self._capacity = capacity
        self._grant_waiting()

    def _bounded(self, size: int) -> int:
        return min(size, max(1, self._capacity // 2))

    def _fits(self, host: str, size: int) -> bool:
        return self._held.get(host, 0) + size <= self._free - size

    def _grant(self, host: str, size: int) -> Share:
        if size:
            self._free -= size
            self._held[host] = self._held.get(host, 0) + size
        return Share(self, host, size)

    def _grant_waiting(self) -> None:
        while self._grant_next():
            pass

    def _grant_next(self) -> bool:
        for host, requests in self._waiting.items():
            future, wanted = next(iter(requests.items()))
            size = self._bounded(wanted)
            if not self._fits(host, size):
                continue
            del requests[future]
            if requests:
                self._waiting.move_to_end(host)
            else:
                del self._waiting[host]
            if not future.done():
                self._grant(host, size)
                future.set_result(size)
            return True
        return False
