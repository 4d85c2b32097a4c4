"""One attempt at a shard, as the run sees it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field, replace
from uuid import UUID

from ferry.core import Damaged
from ferry.state import ChunkRef, Recorded
from ferry.transfer import Runtime, Silence
from tasks.shards.files import End, ShardFiles, beat_name, claim_name
from tasks.workers.messages import Beat
from tasks.workers.peer import Peer


@dataclass(slots=True)
class Shard:
    """A part of the plan. ``attempt`` is the one that counts, or the next one."""

    number: int
    refs: list[ChunkRef]
    attempt: int = 1
    crashes: int = 0  # without a newly recorded row in between
    recorded: int = 0  # rows in this run, at the last crash
    counted: Recorded = field(default_factory=dict)  # what the attempts so far had recorded
    not_before: float = 0.0  # by the monotonic clock: the process of the attempt before has to look first
    is_doubtful: bool = False  # the attempt's submission failed, but Prefect may have it, and a worker begin it

    def count_crash(self, recorded: int) -> None:
        """Count a crash of a process, with which the shard has ``recorded`` rows of this run."""
        self.crashes = 1 if recorded > self.recorded else self.crashes + 1
        self.recorded = max(recorded, self.recorded)


class ShardHandle(Peer):
    """The run's handle of an attempt that was submitted. Its beats come through the state."""

    def __init__(self, runtime: Runtime, shard: Shard, flow_run: UUID) -> None:
        super().__init__(runtime)
        self.shard, self.attempt, self.flow_run = shard, shard.attempt, flow_run
        self.submitted_at = time.monotonic()
        self.end: End | None = None
        self.is_recorded = False  # whether Prefect has the end of its process
        self.hint = ""  # why no worker has begun it, as far as that was said
        self._count = 0
        self._silence: Silence | None = None  # from when the claim was seen

    @property
    def is_claimed(self) -> bool:
        return self._silence is not None

    @property
    def processes(self) -> int:
        """The live processes of the attempt; 0 before its first beat: a process that starts sends no requests."""
        return super().processes if self._beats and self.end is None else 0

    def look(self, files: ShardFiles, names: Set[str]) -> float:
        """Read what the attempt's process has written, and return for how many seconds it has been silent.

        ``names`` are those of the files that there are. Raises FerryError while the state does not answer.
        """
        number = self.shard.number
        if self._silence is None and claim_name(number, self.attempt) in names:
            self._silence = Silence(time.monotonic())
        if self._silence is None:
            return 0.0
        if beat_name(number, self.attempt) in names:
            try:
                count, beat, self.end = files.read_beat(number, self.attempt)
            except (Damaged, FileNotFoundError):  # counts as silence
                pass
            else:
                if count > self._count:
                    self._count = count
                    self.take(beat)
        return self._silence.check(time.monotonic(), self._count)

    def excuse(self) -> None:
        """Begin to count the silence again: this process could not have heard anything."""
        if self._silence is not None:
            self._silence = Silence(time.monotonic())

    def count_again(self, recorded: Recorded) -> None:
        """Count what this attempt has recorded, in place of what its beats said.

        ``recorded`` is what the shard has recorded in this run, by this attempt and those before.
        """
        statuses, classes = Counter(status for status, _ in recorded.values()), Counter(_classes(recorded))
        statuses.subtract(status for status, _ in self.shard.counted.values())
        classes.subtract(_classes(self.shard.counted))
        self.shard.counted = recorded
        self.take(replace(Beat(), bytes=self._beat.bytes, statuses=dict(statuses), classes=dict(classes)))


def _classes(recorded: Recorded) -> list[str]:
    return [kind for _, kind in recorded.values() if kind is not None]
