"""A quota of bytes or files that hosts share fairly: no host can use all of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Share:
    """The part of a quota that one body holds, until :meth:`end`. ``beside`` is its part of another one."""

    __slots__ = ("_host", "beside", "quota", "size")

    def __init__(self, quota: Quota, host: str, size: int) -> None:
        self.quota = quota
        self._host = host
        self.size = size
        self.beside: Share | None = None

    def grow(self, size: int) -> bool:
        """Grow to ``size`` if that is free, else return False. Never waits: waiting with a share could deadlock."""
        if size > self.size:
            if self.quota.offer(self._host, size - self.size) is None:
                return False
            self.size = size
        return True

    def shrink(self, size: int) -> None:
        """Release all that exceeds ``size``."""
        if size < self.size:
            self.quota.give_back(self._host, self.size - size)
            self.size = size

    def end(self) -> None:
        """Release everything. Safe to call twice."""
        self.shrink(0)
        if self.beside is not None:
            self.beside.end()


class Quota:
    """A capacity of bytes or files that hosts share. For one event loop; not thread-safe.

    A host may hold at most as much as stays free ("dynamic thresholds": A. Choudhury, E. Hahne, IEEE/ACM Transactions
    on Networking 6, 1998). A single host holds at most half, two hosts a third each, so that a new host always finds
    free capacity. Requests of one host are served in order, and hosts take turns.

    Requests are small compared to the capacity: a body asks for more by :meth:`Share.grow`, which may refuse.
    """

    __slots__ = ("_capacity", "_free", "_held", "_waiting")
    overtaking = True  # whether a request may be granted while another host's, which came first, does not fit

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = capacity
        self._held: dict[str, int] = {}
        self._waiting: OrderedDict[str, dict[asyncio.Future[int], int]] = OrderedDict()

    @property
    def free(self) -> int:
        """The capacity that no share holds; negative after :meth:`resize` to less than is held."""
        return self._free

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return sum(map(len, self._waiting.values()))

    def waiting_of(self) -> dict[str, int]:
        """Return the number of waiting requests of each host. Safe from any thread."""
        return {host: len(requests) for host, requests in list(self._waiting.items())}

    async def take(self, host: str, size: int) -> Share:
        """Wait for a share. A request for more than half of the capacity gets half.

        A cancelled request releases what it was granted and leaves the queue.
        """
        size = self._bounded(size)
        if not self._has_to_queue(host) and self._fits(host, size):
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
                requests.pop(future, None)  # absent if it was granted at the same moment
                if not requests:
                    self._waiting.pop(host, None)
                self._grant_waiting()
            raise

    def offer(self, host: str, size: int) -> Share | None:
        """Return a share if ``size`` is free for the host now, else None."""
        return self._grant(host, size) if self._fits(host, size) else None

    def give_back(self, host: str, size: int) -> None:
        """Release ``size`` of what the host holds, and grant waiting requests."""
        self._free += size
        left = self._held[host] - size
        if left:
            self._held[host] = left
        else:
            del self._held[host]
        self._grant_waiting()

    def resize(self, capacity: int) -> None:
        """Change the capacity. Shares keep their size; if they exceed it, new requests wait for their release."""
        self._free += capacity - self._capacity
        self._capacity = capacity
        self._grant_waiting()

    def _bounded(self, size: int) -> int:
        return min(size, max(1, self._capacity // 2))

    def _has_to_queue(self, host: str) -> bool:
        return host in self._waiting

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
                if self.overtaking:
                    continue
                return False
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


class Space(Quota):
    """A capacity in bytes, of which a request gets all that it asks for, be that the whole capacity.

    A request that does not fit holds up all that come after it. So a large one is served in its turn.
    """

    __slots__ = ()
    overtaking = False

    @property
    def capacity(self) -> int:
        return self._capacity

    def _bounded(self, size: int) -> int:
        return size

    def _has_to_queue(self, host: str) -> bool:  # noqa: ARG002
        return bool(self._waiting)

    def _fits(self, host: str, size: int) -> bool:  # noqa: ARG002
        return size <= self._free
