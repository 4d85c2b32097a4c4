"""A quantity that hosts share, so that none of them can take it from the others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

SMALL_BYTES = 256 * 1024  # what asks for no more never waits for what is larger

Waiting = OrderedDict[str, dict[asyncio.Future[int], int]]


class Share:
    """What one body holds of a quota, until :meth:`end`."""

    __slots__ = ("_host", "_quota", "size")

    def __init__(self, quota: Quota, host: str, size: int) -> None:
        self._quota = quota
        self._host = host
        self.size = size

    def grow(self, size: int) -> bool:
        """Becomes ``size`` if that is possible at once. Never waits: who holds a share must not."""
        if size > self.size:
            if not self._quota.grow(self._host, size - self.size, size):
                return False
            self.size = size
        return True

    def shrink(self, size: int) -> None:
        """Gives back what is more than ``size``."""
        if size < self.size:
            self._quota.give_back(self._host, self.size - size)
            self.size = size

    def end(self) -> None:
        """Gives everything back. Safe to call twice."""
        self.shrink(0)


class Quota:
    """Bytes or files, given out to hosts. One event loop's; not for several threads.

    A host may hold as much as is left free ("dynamic thresholds": A. Choudhury, E. Hahne, IEEE/ACM Transactions on
    Networking 6, 1998). One host alone holds a half at most, two hosts a third each, and something is always left for
    another one. Requests of one host go in their order, and hosts take turns:

    | a request | is granted when its host then holds no more than is left, and |
    |---|---|
    | for 256 KiB or less | (half as much while a larger one of the same host waits) |
    | for more | every larger request that came before is granted, or its host holds something |
    | to grow beyond 256 KiB | no larger request waits |

    So small requests pass large ones, and what is given back goes first to a host that has nothing.
    """

    __slots__ = ("_capacity", "_free", "_held", "_large", "_small")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = capacity
        self._held: dict[str, int] = {}
        self._small: Waiting = OrderedDict()
        self._large: Waiting = OrderedDict()

    @property
    def free(self) -> int:
        return self._free

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(len(requests) for queue in (self._small, self._large) for requests in queue.values())

    def waiting_of(self) -> dict[str, int]:
        """How many requests of each host wait. From any thread."""
        found: dict[str, int] = {}
        for queue in (self._small, self._large):
            for host, requests in list(queue.items()):
                found[host] = found.get(host, 0) + len(requests)
        return found

    async def take(self, host: str, size: int) -> Share:
        """Waits for a share. A request for more than half of the quota is one for the half.

        Cancelled, it leaves no trace.
        """
        small = size <= SMALL_BYTES
        queue = self._small if small else self._large
        if host not in queue and (small or self._next_of_large() is None) and self._fits(host, self._bounded(size)):
            return self._give(host, self._bounded(size))
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        queue.setdefault(host, {})[future] = size
        try:
            return Share(self, host, await future)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(host, future.result())
            else:
                requests = queue.get(host, {})
                requests.pop(future, None)  # it may have had its turn just now
                if not requests:
                    queue.pop(host, None)
                self._hand_over()
            raise

    def offer(self, host: str, size: int) -> Share | None:
        """A share at once, or None."""
        return self._give(host, size) if not self._large and self._fits(host, size) else None

    def grow(self, host: str, more: int, total: int) -> bool:
        """Gives ``more`` to a share that then is ``total``, or returns False."""
        if (total > SMALL_BYTES and self._large) or not self._fits(host, more):
            return False
        self._give(host, more)
        return True

    def give_back(self, host: str, size: int) -> None:
        self._free += size
        left = self._held[host] - size
        if left:
            self._held[host] = left
        else:
            del self._held[host]
        if self._small or self._large:
            self._hand_over()

    def resize(self, capacity: int) -> None:
        """What is out stays out; nothing more goes until it is back where that is too much."""
        self._free += capacity - self._capacity
        self._capacity = capacity
        self._hand_over()

    def _bounded(self, size: int) -> int:
        return min(size, max(1, self._capacity // 2))

    def _fits(self, host: str, size: int) -> bool:
        left = self._free - size
        if size <= SMALL_BYTES and host in self._large:
            left //= 2  # or it would wait for as long as small ones come
        return self._held.get(host, 0) + size <= left

    def _give(self, host: str, size: int) -> Share:
        if size:
            self._free -= size
            self._held[host] = self._held.get(host, 0) + size
        return Share(self, host, size)

    def _next_of_large(self) -> str | None:
        """The host whose turn it is: the first that holds nothing."""
        return next((host for host in self._large if host not in self._held), None)

    def _hand_over(self) -> None:
        for queue in (self._small, self._large):
            while self._hand_one_over(queue):
                pass

    def _hand_one_over(self, queue: Waiting) -> bool:
        for host, requests in queue.items():
            future, wanted = next(iter(requests.items()))
            size = self._bounded(wanted)
            if not self._fits(host, size):
                if queue is self._large and host not in self._held:
                    return False  # what is given back from now on is for this one
                continue
            del requests[future]
            if requests:
                queue.move_to_end(host)
            else:
                del queue[host]
            if not future.done():
                self._give(host, size)
                future.set_result(size)
            return True
        return False
