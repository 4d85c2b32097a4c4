"""The number of live runs that share limits, by their beats. Pure."""

from __future__ import annotations

from collections.abc import Mapping

BEAT_S = 5.0  # between two beats of a run, each followed by a read of the others'
DEAD_S = 30.0  # a run whose beat has not changed for so long has died
JOIN_S = 1.5 * BEAT_S  # by then the others have read the first beat of a run, and leave it its part


class Members:
    """Counts live runs. Times are monotonic and this process's own: the clocks of machines are not compared."""

    def __init__(self) -> None:
        self._changed: dict[str, tuple[int, float]] = {}  # run -> its last beat, and when this process first saw it
        self._read_at: float | None = None

    def count(self, now: float, beats: Mapping[str, int]) -> int:
        """Return how many other runs live. ``beats`` are those that the server has at the time ``now``.

        | beat of a run | lives |
        |---|---|
        | seen for the first time, or changed since the last read | yes |
        | unchanged for less than DEAD_S | yes |
        | unchanged for DEAD_S | no |
        | unchanged, and this process could not read for half of DEAD_S | yes: the others could not write either |
        | missing: the run has ended, is paused, or transfers nothing | no |
        """
        was_away = self._read_at is not None and now - self._read_at >= DEAD_S / 2
        self._read_at = now
        before = {} if was_away else self._changed
        self._changed = {
            run: before[run] if run in before and before[run][0] == beat else (beat, now) for run, beat in beats.items()
        }
        return sum(now - since < DEAD_S for _, since in self._changed.values())
