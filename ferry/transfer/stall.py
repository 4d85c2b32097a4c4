"""Detection of a stalled run: what its rows wait for, when Ferry warns, and when the run ends.

Decisions are pure functions; only :class:`Waits` has state of its own. See docs/decisions/0029-when-nothing-moves.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

WARN_S, END_S = 120.0, 600.0
SILENT_WARN_S = 15.0  # of an engine process, which sends a message four times a second
SILENT_END_S = 60.0
CHECK_S = 1.0
MAX_GAP_S = 5.0  # between two checks; a longer gap means that the machine or the process was suspended
MAX_WAITS = 5  # in one sentence
MAX_SILENT = 3
TURN = "their turn at the destination's bytes_per_s"  # a wait whose end is known


class Wait(NamedTuple):
    """What some rows wait for; ``announced`` if the time at which the wait ends is known."""

    what: str
    rows: int
    announced: bool = False


class Waits:
    """What each row in progress waits for, and how many pieces of bodies were received or sent.

    One event loop changes it; any thread may read it.
    """

    def __init__(self) -> None:
        self._steps: dict[object, str] = {}  # by the row's asyncio task
        self.pieces = 0

    def on(self, what: str) -> None:
        """Records that the row of the current task waits for ``what``."""
        self._steps[asyncio.current_task()] = what

    def over(self) -> None:
        """Records that the row of the current task waits for nothing any more."""
        self._steps.pop(asyncio.current_task(), None)

    def moved(self) -> None:
        """Counts a piece of a body that was received or sent."""
        self.pieces += 1

    def rows(self) -> Counter[str]:
        """Returns the number of rows by what they wait for."""
        return Counter(list(self._steps.values()))


class Action(StrEnum):
    """What the watchdog does."""

    NOTHING = "nothing"
    WARN = "warn"
    END = "end"


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of a run at one moment. The first two numbers never decrease."""

    done: int
    pieces: int
    pending: bool
    excused: bool


def is_excused(paused: bool, waits: Iterable[Wait]) -> bool:
    """Returns whether a run has a reason to finish no row.

    | paused by the user | rows in progress, or waiting without a known end | rows with an announced end | excused |
    |---|---|---|---|
    | yes | any | any | yes |
    | no | some | any | no |
    | no | none | some | yes |
    | no | none | none | no: nothing would ever begin |

    Announced are a Retry-After, a pause after failures, a retry's delay, a turn at `requests_per_s` or `bytes_per_s`.
    """
    waiting = [wait for wait in waits if wait.rows]
    return paused or (bool(waiting) and all(wait.announced for wait in waiting))


def decide(*, pending: bool, excused: bool, still_s: float, quiet_s: float) -> Action:
    """Returns what to do. No row has finished for ``still_s``, and no piece of a body has moved for ``quiet_s``.

    | rows pending | excused | no row finished for | no byte moved for | action |
    |---|---|---|---|---|
    | no | any | any | any | nothing |
    | yes | yes | any | any | nothing |
    | yes | no | under 2 minutes | any | nothing |
    | yes | no | 2 minutes or more | under 10 minutes | warn: one large object may take hours |
    | yes | no | 10 minutes or more | 10 minutes or more | end |
    """
    if not pending or excused or still_s < WARN_S:
        return Action.NOTHING
    return Action.END if still_s >= END_S and quiet_s >= END_S else Action.WARN


class Watchdog:
    """Measures how long a run has made no progress, by a clock that stops while the machine is suspended."""

    def __init__(self, now: float) -> None:
        self._checked = now
        self._last = Moment(0, 0, False, False)
        self.still_s = self.quiet_s = 0.0

    def check(self, now: float, moment: Moment) -> Action:
        """Returns what to do at this moment. A gap between two checks counts as :data:`MAX_GAP_S` at most."""
        gap_s, self._checked = min(now - self._checked, MAX_GAP_S), now
        last, self._last = self._last, moment
        idle = not moment.pending or moment.excused
        self.still_s = 0.0 if idle or moment.done != last.done else self.still_s + gap_s
        self.quiet_s = 0.0 if not self.still_s or moment.pieces != last.pieces else self.quiet_s + gap_s
        return decide(pending=moment.pending, excused=moment.excused, still_s=self.still_s, quiet_s=self.quiet_s)


class Silence:
    """Measures how long an engine process has sent no message, while this process was not suspended."""

    def __init__(self, now: float) -> None:
        self._checked = now
        self._beats = 0
        self.seconds = 0.0

    def check(self, now: float, beats: int) -> float:
        """Returns the seconds since the last message; ``beats`` is the number of messages received."""
        gap_s, self._checked = min(now - self._checked, MAX_GAP_S), now
        self.seconds = 0.0 if beats != self._beats else self.seconds + gap_s
        self._beats = beats
        return self.seconds


def describe_stall(still_s: float, waits: Iterable[Wait]) -> str:
    """Returns a sentence such as "no row has finished for 2:10: 40 rows wait for memory, 12 for their check"."""
    rows: Counter[str] = Counter()
    for wait in waits:
        rows[wait.what] += wait.rows
    parts = [f"{count:,} for {what}" for what, count in rows.items() if count][:MAX_WAITS]
    line = f"no row has finished for {duration(still_s)}"
    if not parts:
        return f"{line}: no row is in progress"
    count, _, what = parts[0].partition(" ")
    first = f"{count} {'row waits' if count == '1' else 'rows wait'} {what}"
    more = len([what for what in rows if rows[what]]) - len(parts)
    return f"{line}: " + ", ".join([first, *parts[1:], *([f"and {more} more"] if more else [])])


def describe_silence(hosts: Mapping[str, str]) -> str:
    """Returns a sentence such as "img.old.example refuses connections, retrying"; "" without a host.

    ``hosts`` are those that have never answered, with what each does instead.
    """
    named = [f"{host} {what}" for host, what in list(hosts.items())[:MAX_SILENT]]
    more = [f"{len(hosts) - MAX_SILENT:,} more hosts do not answer"] if len(hosts) > MAX_SILENT else []
    return f"{'; '.join([*named, *more])}, retrying" if named else ""


def duration(seconds: float) -> str:
    """Returns minutes and seconds, such as `2:10`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
