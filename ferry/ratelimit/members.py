"""The number of live runs that share limits, by their beats. Pure."""

from __future__ import annotations

from collections.abc import Mapping

BEAT_S = 5.0  # between two beats of a run, each followed by a read of the others'
DEAD_S = 30.0  # a run whose beat has not changed for so long has died
MOST_S = 2 * BEAT_S  # of silence that one read adds: while a server is away, others cannot write either
JOIN_S = 1.5 * BEAT_S  # by then the others have read the first beat of a run, and leave it its part


class Members:
    """Counts live runs. Times are monotonic and this process's own: the clocks of machines are not compared."""

    def __init__(self) -> None:
        self._silent: dict[str, tuple[int, float]] = {}  # run -> its last beat, and the seconds since it changed
        self._read_at: float | None = None

    def count(self, now: float, beats: Mapping[str, int]) -> int:
        """Return how many other runs live. ``beats`` are those that the server has at the time ``now``.

        Time in which this process could not read counts as MOST_S at most.

        | beat of a run | lives |
        |---|---|
        | seen for the first time, or changed since the last read | yes |
        | unchanged for less than DEAD_S | yes |
        | unchanged for DEAD_S | no |
        | missing: the run has ended, is paused, or transfers nothing | no |
        """
        passed = 0.0 if self._read_at is None else min(now - self._read_at, MOST_S)
        self._read_at = now
        before = self._silent
        self._silent = {
            run: (beat, before[run][1] + passed) if run in before and before[run][0] == beat else (beat, 0.0)
            for run, beat in beats.items()
        }
        return sum(silent < DEAD_S for _, silent in self._silent.values())
