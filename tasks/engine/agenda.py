"""The order in which a chunk's rows are tried: ready ones, delayed ones, and last tries at the end. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from tasks.engine.objects import Row


@dataclass(slots=True)
class Item:
    """A row with what its tries in this chunk attempt came to."""

    row: Row
    tries: int = 0
    requests: int = 0
    mismatches: int = 0
    last: bool = False  # this is the try at the chunk's end
    started_at: datetime | None = None


class Agenda:
    """Hands out items; the caller gives back each with :meth:`retry`, :meth:`to_the_end` or :meth:`done`."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._ready = deque(Item(row) for row in rows)
        self._delayed: list[tuple[float, int, Item]] = []
        self._end: deque[Item] = deque()
        self._first_out = 0  # items being tried that may come back
        self._last_out = 0
        self._count = 0

    @property
    def empty(self) -> bool:
        """Nothing is left, nor being tried."""
        return not (self._ready or self._delayed or self._end or self._first_out or self._last_out)

    def next(self, now: float) -> Item | float | None:
        """An item to try; or the seconds after which one will be ready; or None: nothing for now.

        Last tries are handed out once nothing else is ready, delayed or being tried.
        """
        item: Item | None = None
        if self._delayed and self._delayed[0][0] <= now:
            item = heapq.heappop(self._delayed)[2]
        elif self._ready:
            item = self._ready.popleft()
        elif self._end and not self._delayed and not self._first_out:
            self._last_out += 1
            return self._end.popleft()
        if item is not None:
            self._first_out += 1
            return item
        return max(0.001, self._delayed[0][0] - now) if self._delayed else None

    def retry(self, item: Item, at: float) -> None:
        self.done(item)
        item.last = False
        self._count += 1
        heapq.heappush(self._delayed, (at, self._count, item))

    def to_the_end(self, item: Item) -> None:
        self.done(item)
        item.last = True
        self._end.append(item)

    def done(self, item: Item) -> None:
        if item.last:
            self._last_out -= 1
        else:
            self._first_out -= 1
