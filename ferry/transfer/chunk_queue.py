"""Queue of one chunk's rows: rows not handed out yet, rows in progress, and last tries, which wait for all others.

A row may have several addresses of its object. They are tried in order, each with all its tries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ferry.core import Again, ObjectError, Row, redact
from ferry.ratelimit import host_of
from ferry.transfer.retry import other_address_may_help

SLICE_ROWS = 500  # rows that are read from the chunk's table at a time


@dataclass(slots=True, eq=False)
class PendingRow:
    """A row with the results of its tries in this attempt at the chunk."""

    row: Row
    host: str  # of the address whose turn it is
    tries: int = 0
    excused: int = 0  # tries that do not count, because the destination did not respond to any row
    requests: int = 0
    mismatches: int = 0
    may_have_written: bool = False  # a try failed at the destination, so the object under the key is not known
    last: bool = False  # this is the try at the end of the chunk
    started_at: datetime | None = None
    failures: tuple[tuple[str, ObjectError], ...] = ()  # addresses that have failed for good, with their errors

    @property
    def address(self) -> str:
        """The address whose turn it is."""
        return (self.row.alternatives or ())[len(self.failures) - 1] if self.failures else self.row.source

    @property
    def to_fetch(self) -> Row:
        """The row with that address as its source. The manifest's ETag and date are those of the first address."""
        return self.row._replace(source=self.address, etag=None, last_modified=None) if self.failures else self.row

    @property
    def has_next_address(self) -> bool:
        return len(self.failures) < len(self.row.alternatives or ())

    def to_next_address(self, error: ObjectError) -> None:
        """Takes the next address, which gets all tries of its own, after ``error`` at the present one."""
        self.failures += ((self.address, error),)
        self.host, self.excused, self.mismatches, self.last = host_of(self.address), self.tries, 0, False

    def failure(self, error: ObjectError) -> tuple[str | None, ObjectError, str]:
        """Returns which address's error the row fails with, after ``error`` at the last one that was tried.

        The result is the address, redacted (None for the row's source), its error, and the message. The first row that
        fits decides:

        | last error | any error | the row's error |
        |---|---|---|
        | another address would not help (5xx, destination) | any | the last one |
        | any other | one that the next run may try again (403, blocked) | the first such one |
        | any other | permanent | the first one |
        """
        tried = [*self.failures, (self.address, error)]
        if len(tried) == 1:
            return None, error, error.message
        at = len(tried) - 1
        if other_address_may_help(error):
            at = next((n for n, (_, each) in enumerate(tried) if each.again is not Again.NEVER), 0)
        others = ", ".join(f"{redact(address)} ({e.error_class})" for n, (address, e) in enumerate(tried) if n != at)
        where = f" at {redact(tried[at][0])}" if at else ""
        message = f"{tried[at][1].message}{where}; {len(tried)} addresses were tried, also {others}"
        return redact(tried[at][0]) if at else None, tried[at][1], message


class Rows(Protocol):
    """The source of rows, read in slices: 100,000 rows of a chunk are not in memory as objects at once."""

    def take(self, count: int) -> Sequence[PendingRow] | None:
        """Returns the rows to do among the next ``count`` rows, perhaps none, or None at the end."""
        ...


class ChunkQueue:
    """Hands out rows in slices; last tries are deferred until all other rows have finished.

    Each row is given back once, with :meth:`requeue_last` or :meth:`done`. A row that waits for another try stays in
    progress.
    """

    __slots__ = ("_in_progress", "_last_tries", "_later", "_rows")

    def __init__(self, rows: Rows, later: Rows | None = None) -> None:
        """``later`` are rows that begin once the others have finished, but for their last tries."""
        self._rows: Rows | None = rows
        self._later = later
        self._in_progress = 0
        self._last_tries: list[PendingRow] = []

    @property
    def idle(self) -> bool:
        """Whether no row is in progress: then :meth:`next_rows` has rows, or the queue is finished."""
        return not self._in_progress

    @property
    def finished(self) -> bool:
        """Whether no row is left or in progress."""
        return self._rows is None and self._later is None and not self._in_progress and not self._last_tries

    def next_rows(self) -> Sequence[PendingRow]:
        """Returns the next slice of rows; empty if none may begin now, or none is left."""
        while self._rows is not None or (self._later is not None and not self._in_progress):
            if self._rows is None:
                self._rows, self._later = self._later, None
                continue
            items = self._rows.take(SLICE_ROWS)
            if items is None:
                self._rows = None
            elif items:
                self._in_progress += len(items)
                return items
        if self._in_progress or not self._last_tries:
            return ()
        last, self._last_tries = self._last_tries, []
        for item in last:
            item.last = True
        self._in_progress = len(last)
        return last

    def requeue_last(self, item: PendingRow) -> None:
        """Gives a row back for a last try at the end of the chunk."""
        self._in_progress -= 1
        self._last_tries.append(item)

    def done(self) -> None:
        """Gives a row back that needs no further try in this attempt at the chunk."""
        self._in_progress -= 1
