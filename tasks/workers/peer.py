"""Another process of the run, as the run's own process sees it by the beats that it sends."""

from __future__ import annotations

from collections.abc import Mapping

from ferry.ratelimit import HostSnapshot
from ferry.transfer import Runtime, Wait
from tasks.workers.messages import Beat, Pauses


class Peer:
    """A process whose beats arrive somehow. Its counts are added to the run's progress."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._beat = Beat()
        self._beats = 0
        self.has_died = False

    @property
    def processes(self) -> int:
        """The number of live engine processes that the beats are of."""
        return 0 if self.has_died else self._beat.processes

    @property
    def hosts(self) -> tuple[list[HostSnapshot], int]:
        """The state of the process's limiter for each host, and the number of connections it opened."""
        return self._beat.snapshots(), self._beat.opened

    @property
    def pauses(self) -> Pauses:
        """The hosts that the process has paused."""
        return {} if self.has_died else self._beat.pauses

    @property
    def pieces(self) -> int:
        """How many pieces of bodies the process has sent or received."""
        return self._beat.pieces

    @property
    def silent(self) -> dict[str, str]:
        """The hosts that have never answered the process."""
        return dict(self._beat.silent)

    @property
    def waits(self) -> list[Wait]:
        """What the process's rows wait for."""
        return [] if self.has_died else self._beat.waiting()

    def take(self, beat: Beat) -> None:
        """Add what the process has done since its last beat to the run's progress."""
        before, self._beat = self._beat, beat
        self._beats += 1
        self._runtime.progress.add_all(
            _more(before.statuses, beat.statuses), _more(before.classes, beat.classes), beat.bytes - before.bytes
        )


def _more(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {key: after.get(key, 0) - before.get(key, 0) for key in {**before, **after}}
