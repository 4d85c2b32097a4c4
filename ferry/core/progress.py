"""What a run has done so far, for whoever draws it. Counters only; rates are the reader's."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ferry.core.records import AGAIN, Again, ErrorClass, Status


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment of a run. ``todo`` counts the rows that this run set out to do."""

    todo: int
    done: int
    failed: int
    bytes: int
    elapsed_s: float
    rate: float  # rows a second, over the last few seconds
    bytes_rate: float
    left_s: float | None  # None while it cannot be told
    statuses: dict[str, int]
    classes: dict[str, int]
    paused: bool = False
    still: str = ""  # that nothing moves, and what is waited for


class Progress:
    """Counts from the loop's thread, read from any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.todo = 0
        self._bytes = 0
        self._statuses: Counter[str] = Counter()
        self._classes: Counter[str] = Counter()
        self._before: tuple[Counter[str], Counter[str]] = (
            Counter(),
            Counter(),
        )  # outcomes of rows that were taken back
        self._started = time.monotonic()
        self._first: float | None = None
        self._last = 0.0
        self._marks: list[tuple[float, int, int]] = []
        self._paused_at: float | None = None
        self.still = ""
        self._paused_s = 0.0  # between the first outcome and the last

    def start(self, todo: int) -> None:
        """More rows to do."""
        with self._lock:
            self.todo += todo

    def requeue(self, rows: int) -> None:
        """Rows that failed in this run are tried once more: they are to do again, and failed no longer."""
        statuses, classes = self._before
        with self._lock:
            self._statuses[Status.FAILED] -= rows
            statuses[Status.FAILED] += rows
            for name in [name for name in self._classes if AGAIN[ErrorClass(name)] is Again.NOW]:
                classes[name] += self._classes.pop(name)  # a pass takes all of these

    def add(self, status: Status, error_class: ErrorClass | None, size: int) -> None:
        now = time.monotonic()
        with self._lock:
            if self._first is None:
                self._first = now
            self._last = now
            self._statuses[status] += 1
            if error_class is not None:
                self._classes[error_class] += 1
            self._bytes += size

    def add_all(self, statuses: Mapping[str, int], classes: Mapping[str, int], size: int) -> None:
        """What another process did since it was asked last."""
        now = time.monotonic()
        with self._lock:
            if sum(statuses.values()):
                self._first = self._first or now
                self._last = now
            self._statuses.update(statuses)
            self._classes.update(classes)
            self._bytes += size

    def outcomes(self) -> tuple[Counter[str], Counter[str]]:
        """Statuses and error classes of all outcomes so far; of a row that was tried in two passes there are two. These
        numbers never fall, as those of :meth:`snapshot` do when a pass begins."""
        with self._lock:
            return self._statuses + self._before[0], self._classes + self._before[1]

    @property
    def recorded(self) -> int:
        """Outcomes so far; it never falls."""
        with self._lock:
            return self._statuses.total() + self._before[0].total()

    @property
    def pending(self) -> int:
        """Rows that are to do."""
        with self._lock:
            return self.todo - self._statuses.total()

    def pause(self, paused: bool) -> float:
        """The run is paused, or goes on: then how many seconds it was paused."""
        now = time.monotonic()
        with self._lock:
            before, self._paused_at = self._paused_at, now if paused else None
            seconds = 0.0 if before is None else now - before
            if self._first is not None:
                self._paused_s += seconds
            return seconds

    @property
    def paused(self) -> bool:
        return self._paused_at is not None

    @property
    def retryable(self) -> int:
        """Failures so far that another pass may cure."""
        with self._lock:
            return sum(rows for name, rows in self._classes.items() if AGAIN[ErrorClass(name)] is Again.NOW)

    @property
    def steady_s(self) -> float:
        """Seconds between the first outcome and the last, without those in which the run was paused."""
        return max(0.0, self._last - self._first - self._paused_s) if self._first is not None else 0.0

    def snapshot(self, window_s: float = 5.0) -> Snapshot:
        now = time.monotonic()
        with self._lock:
            done = sum(self._statuses.values())
            self._marks = [mark for mark in self._marks if mark[0] >= now - window_s][-200:]
            since, before, bytes_before = self._marks[0] if self._marks else (self._first or now, 0, 0)
            self._marks.append((now, done, self._bytes))
            span = now - since
            rate = max(0.0, done - before) / span if span > 0.2 else 0.0  # a further pass takes rows back
            left = self.todo - done
            return Snapshot(
                self.todo, done, self._statuses[Status.FAILED], self._bytes, now - self._started, rate,
                (self._bytes - bytes_before) / span if span > 0.2 else 0.0,
                left / rate if rate > 0 and not self.paused else None, dict(self._statuses), dict(self._classes),
                self.paused, self.still,
            )  # fmt: skip
