"""Detection of a run in which nothing moves: what its rows wait for, when that is said, when it ends the run.

Pure but for the counts of :class:`Waits`; see docs/decisions/0029-when-nothing-moves.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

TELL_S, END_S = 120.0, 600.0
SILENT_TELL_S = 15.0  # of an engine process; it answers four times a second
SILENT_END_S = 60.0
LOOK_S = 1.0
MOST_GAP_S = 5.0  # between two looks; a longer one is a machine or a process that was suspended
MOST_WAITS = 5  # in one sentence
TURN = "their turn at the destination's bytes_per_s"  # a row's wait whose end is known


class Wait(NamedTuple):
    """What some rows wait for. ``announced``: the time at which it ends is known."""

    what: str
    rows: int
    announced: bool = False


class Waits:
    """The step that each row under way is at, and how many pieces of bodies came or went. One event loop's; read from
    any thread."""

    def __init__(self) -> None:
        self._steps: dict[object, str] = {}  # of each row's asyncio task
        self.pieces = 0

    def on(self, what: str) -> None:
        """The row of this task waits for ``what`` from now on."""
        self._steps[asyncio.current_task()] = what

    def over(self) -> None:
        """The row of this task waits for nothing more."""
        self._steps.pop(asyncio.current_task(), None)

    def moved(self) -> None:
        """A piece of a body came or went."""
        self.pieces += 1

    def rows(self) -> Counter[str]:
        return Counter(list(self._steps.values()))


class Action(StrEnum):
    """What the watchdog does."""

    NOTHING = "nothing"
    TELL = "tell"
    END = "end"


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known of a run at one moment. The first two only grow."""

    settled: int
    pieces: int
    pending: bool
    excused: bool


def is_excused(paused: bool, waits: Iterable[Wait]) -> bool:
    """Whether a run has reason to settle nothing.

    | paused by the user | rows under way, or that wait for something without a known end | rows that wait for an announced end | excused |
    |---|---|---|---|
    | yes | any | any | yes |
    | no | some | any | no |
    | no | none | some | yes |
    | no | none | none | no: nothing would ever begin |

    Announced are a Retry-After, a pause after failures, a retry's delay, a turn at `requests_per_s` or `bytes_per_s`.
    """  # noqa: E501 - a table
    every = [wait for wait in waits if wait.rows]
    return paused or (bool(every) and all(wait.announced for wait in every))


def judge(*, pending: bool, excused: bool, still_s: float, quiet_s: float) -> Action:
    """The decision. ``still_s``: no row was settled; ``quiet_s``: nor did a piece of a body come or go.

    | rows pending | excused | no row settled for | no byte moved for | then |
    |---|---|---|---|---|
    | no | any | any | any | nothing |
    | yes | yes | any | any | nothing |
    | yes | no | under 2 minutes | any | nothing |
    | yes | no | 2 minutes or more | under 10 minutes | tell: one large object may take hours |
    | yes | no | 10 minutes or more | 10 minutes or more | end |
    """
    if not pending or excused or still_s < TELL_S:
        return Action.NOTHING
    return Action.END if still_s >= END_S and quiet_s >= END_S else Action.TELL


class Watchdog:
    """Judges moments of a run, one after the other, by a clock that does not run while the machine is suspended."""

    def __init__(self, now: float) -> None:
        self._looked = now
        self._last = Moment(0, 0, False, False)
        self.still_s = self.quiet_s = 0.0

    def look(self, now: float, moment: Moment) -> Action:
        """A gap between two looks counts as :data:`MOST_GAP_S` at most: in a longer one this process was suspended."""
        gap_s, self._looked = min(now - self._looked, MOST_GAP_S), now
        last, self._last = self._last, moment
        idle = not moment.pending or moment.excused
        self.still_s = 0.0 if idle or moment.settled != last.settled else self.still_s + gap_s
        self.quiet_s = 0.0 if not self.still_s or moment.pieces != last.pieces else self.quiet_s + gap_s
        return judge(pending=moment.pending, excused=moment.excused, still_s=self.still_s, quiet_s=self.quiet_s)


class Silence:
    """For how long an engine process has said nothing, while this one was awake to hear it."""

    def __init__(self, now: float) -> None:
        self._looked = now
        self._beats = 0
        self.seconds = 0.0

    def look(self, now: float, beats: int) -> float:
        gap_s, self._looked = min(now - self._looked, MOST_GAP_S), now
        self.seconds = 0.0 if beats != self._beats else self.seconds + gap_s
        self._beats = beats
        return self.seconds


def in_words(still_s: float, waits: Iterable[Wait]) -> str:
    """ "nothing settled for 2:10: 40 rows wait for memory, 12 for an answer of img.old.example"."""
    rows: Counter[str] = Counter()
    for wait in waits:
        rows[wait.what] += wait.rows
    parts = [f"{count:,} for {what}" for what, count in rows.items() if count][:MOST_WAITS]
    line = f"nothing settled for {duration(still_s)}"
    if not parts:
        return f"{line}: no row is under way"
    count, _, what = parts[0].partition(" ")
    first = f"{count} {'row waits' if count == '1' else 'rows wait'} {what}"
    more = len([what for what in rows if rows[what]]) - len(parts)
    return f"{line}: " + ", ".join([first, *parts[1:], *([f"and {more} more"] if more else [])])


def duration(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
