"""Thread-safe counters of a run, with snapshots for progress displays."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from ferry.core.records import AGAIN, Again, ErrorClass, Status

MARKS = 50  # moments in a window from which a rate may be counted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counters of a run at one moment. ``todo`` counts the rows that this run has to transfer."""

    todo: int
    done: int
    failed: int
    bytes: int
    elapsed_s: float
    rate: float  # rows per second, over the last seconds
    bytes_rate: float
    left_s: float | None  # estimated seconds left; None while paused or without a rate
    statuses: dict[str, int]
    classes: dict[str, int]
    paused: bool = False
    still: str = ""  # if no transfer makes progress: a sentence that says so and what the run waits for
    silent: str = ""  # if hosts have never answered: a sentence that names them and what they do instead


class Progress:
    """The counters of one run, which any thread may read."""

    def __init__(self) -> None:
        self.window_s = 5.0  # of the rates; longer where outcomes come in bursts, as from other machines
        self._lock = threading.Lock()
        self.todo = 0
        self._bytes = 0
        self._statuses: Counter[str] = Counter()
        self._classes: Counter[str] = Counter()
        self._before: tuple[Counter[str], Counter[str]] = (
            Counter(),
            Counter(),
        )  # outcomes of earlier passes, of rows that are retried
        self._started = time.monotonic()
        self._first: float | None = None
        self._last = 0.0
        self._marks: deque[tuple[float, int, int]] = deque()  # times, with the rows and bytes until then
        self._paused_at: float | None = None
        self.still = self.silent = ""
        self._paused_s = 0.0  # between the first outcome and the last

    def start(self, todo: int) -> None:
        """Add rows that are to be transferred."""
        with self._lock:
            self.todo += todo

    def requeue(self, rows: int) -> None:
        """Count rows that failed in this run as pending again, because a further pass retries them."""
        statuses, classes = self._before
        with self._lock:
            self._statuses[Status.FAILED] -= rows
            statuses[Status.FAILED] += rows
            for name in [name for name in self._classes if AGAIN[ErrorClass(name)] is Again.NOW]:
                classes[name] += self._classes.pop(name)  # a pass retries all failures of these classes

    def add(self, status: Status, error_class: ErrorClass | None, size: int) -> None:
        """Count the outcome of one row, and the ``size`` bytes that it transferred."""
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
        """Count the outcomes of another process since its last report."""
        now = time.monotonic()
        with self._lock:
            if sum(statuses.values()):
                self._first = self._first or now
                self._last = now
            self._statuses.update(statuses)
            self._classes.update(classes)
            self._bytes += size

    def outcomes(self) -> tuple[Counter[str], Counter[str]]:
        """Return the counts of statuses and error classes over all passes. A row has one outcome in each pass.

        Unlike the numbers of :meth:`snapshot`, these never decrease when a pass begins.
        """
        with self._lock:
            return self._statuses + self._before[0], self._classes + self._before[1]

    @property
    def recorded(self) -> int:
        """The number of outcomes so far, over all passes. It never decreases."""
        with self._lock:
            return self._statuses.total() + self._before[0].total()

    @property
    def pending(self) -> int:
        """The number of rows without an outcome."""
        with self._lock:
            return self.todo - self._statuses.total()

    def pause(self, paused: bool) -> float:
        """Pause or resume the run; return the seconds since it was paused, or 0."""
        now = time.monotonic()
        with self._lock:
            before, self._paused_at = self._paused_at, now if paused else None
            seconds = 0.0 if before is None else now - before
            if self._first is not None:
                self._paused_s += seconds
                self._marks = deque([(now, self._statuses.total(), self._bytes)])
            return seconds

    @property
    def paused(self) -> bool:
        return self._paused_at is not None

    @property
    def retryable(self) -> int:
        """The number of failures that a further pass may retry."""
        with self._lock:
            return sum(rows for name, rows in self._classes.items() if AGAIN[ErrorClass(name)] is Again.NOW)

    @property
    def steady_s(self) -> float:
        """Seconds between the first outcome and the last, without pauses."""
        return max(0.0, self._last - self._first - self._paused_s) if self._first is not None else 0.0

    def snapshot(self) -> Snapshot:
        """Return the counters now. The rates are averages over the last ``window_s``, or since the snapshot before."""
        now = time.monotonic()
        with self._lock:
            done = self._statuses.total()
            marks = self._marks
            while len(marks) > 1 and marks[1][0] <= now - self.window_s:
                marks.popleft()
            since, before, bytes_before = marks[0] if marks else (self._first or now, 0, 0)
            if not marks or now - marks[-1][0] >= self.window_s / MARKS:
                marks.append((now, done, self._bytes))
            span = now - since
            rate = max(0.0, done - before) / span if span > 0.2 else 0.0  # negative when a further pass has begun
            left = self.todo - done
            return Snapshot(
                self.todo, done, self._statuses[Status.FAILED], self._bytes, now - self._started, rate,
                (self._bytes - bytes_before) / span if span > 0.2 else 0.0,
                left / rate if rate > 0 and not self.paused else None, dict(self._statuses), dict(self._classes),
                self.paused, self.still, self.silent,
            )  # fmt: skip
