"""What is left of one chunk: rows not handed out yet, rows under way, and last tries that wait for all others. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ferry.core import Row

SLICE_ROWS = 500  # rows that are made from the chunk's table at a time


@dataclass(slots=True, eq=False)
class PendingRow:
    """A row with what its tries in this chunk attempt came to."""

    row: Row
    host: str
    tries: int = 0
    excused: int = 0  # of them, tries that found nobody at the destination
    requests: int = 0
    mismatches: int = 0
    may_have_written: bool = False  # a try failed at the destination: what stands under the key is not known
    last: bool = False  # this is the try at the chunk's end
    started_at: datetime | None = None


class Rows(Protocol):
    """Where the rows come from, a slice at a time, so that a chunk of 100,000 rows is not in memory as objects."""

    def take(self, count: int) -> Sequence[PendingRow] | None:
        """Up to ``count`` further rows that are to be done (perhaps none of these); None at the end."""
        ...


class ChunkQueue:
    """Hands out items in slices, and the last tries once nothing else is under way.

    Each item that was handed out is given back once: with :meth:`requeue_last` or :meth:`done`. One that waits for
    another try stays under way.
    """

    __slots__ = ("_end", "_rows", "_under_way")

    def __init__(self, rows: Rows) -> None:
        self._rows: Rows | None = rows
        self._under_way = 0
        self._end: list[PendingRow] = []

    @property
    def idle(self) -> bool:
        """Nothing is under way: :meth:`more` has something, or it is over."""
        return not self._under_way

    @property
    def over(self) -> bool:
        """Nothing is left, nor under way."""
        return self._rows is None and not self._under_way and not self._end

    def more(self) -> Sequence[PendingRow]:
        """The next slice; empty when there is none, for now or for ever."""
        while self._rows is not None:
            items = self._rows.take(SLICE_ROWS)
            if items is None:
                self._rows = None
            elif items:
                self._under_way += len(items)
                return items
        if self._under_way or not self._end:
            return ()
        last, self._end = self._end, []
        for item in last:
            item.last = True
        self._under_way = len(last)
        return last

    def requeue_last(self, item: PendingRow) -> None:
        self._under_way -= 1
        self._end.append(item)

    def done(self) -> None:
        self._under_way -= 1
