"""What the processes of a run tell each other, through a pipe on one machine and through the state between machines.

Both directions have one form on both ways. A process sends a beat; the run's own process sends orders. No moment of a
clock is sent: pauses are the seconds that are left of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from ferry.core import ChunkIncomplete, Fatal, FerryError, MachineFatal, UserError
from ferry.job import Limits
from ferry.ratelimit import HostSnapshot, Pause, busiest
from ferry.transfer import AHEAD_ROWS, READY_ROWS, Runtime, Wait

MOST_SILENT = 50  # hosts without an answer in one beat
Pauses = dict[str, tuple[float, str, str, float]]  # host -> a Pause, with the seconds that are left as its first field


class Sender(Protocol):
    """A process whose beats this one receives (tasks.workers.peer.Peer)."""

    @property
    def silent(self) -> dict[str, str]: ...
    @property
    def waits(self) -> list[Wait]: ...
    @property
    def pieces(self) -> int: ...
    @property
    def processes(self) -> int: ...


class _Document:
    """A dataclass of JSON values."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()  # type: ignore[call-overload]

    @classmethod
    def decode(cls, raw: bytes | str) -> Self:
        """Returns what :meth:`encode` made. Raises ValueError and TypeError for anything else."""
        return cls(**json.loads(raw))


@dataclass(frozen=True, slots=True)
class Beat(_Document):
    """What a process has done since it began, and its state now."""

    statuses: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    hosts: list[dict[str, Any]] = field(default_factory=list)  # fields of HostSnapshot
    opened: int = 0  # connections
    pauses: Pauses = field(default_factory=dict)
    waits: list[Any] = field(default_factory=list)
    pieces: int = 0
    silent: dict[str, str] = field(default_factory=dict)
    processes: int = 1  # engine processes that this beat is of
    # of a process on the same machine, which gets one chunk after the other
    got: list[str] = field(default_factory=list)  # chunks received since the last beat
    rows: int = 0
    room: int = READY_ROWS + AHEAD_ROWS
    cpu_s: float = 0.0

    @classmethod
    def of(cls, runtime: Runtime, peers: Sequence[Sender] = (), **more: Any) -> Beat:
        """Returns the beat of this process, together with its ``peers`` on this machine."""
        snapshots, opened = runtime.all_hosts()
        done = runtime.progress.snapshot()
        silent = runtime.dispatcher.silent
        for peer in peers:
            silent |= peer.silent
        return cls(
            done.statuses, done.classes, done.bytes,
            [asdict(host) for host in busiest(runtime.run_no, snapshots, 0.0).hosts], opened,
            seconds_left(runtime.limiter.pauses()),
            [*runtime.waits(), *(wait for peer in peers for wait in peer.waits)],
            runtime.object_transfer.waits.pieces + sum(peer.pieces for peer in peers),
            dict(list(silent.items())[:MOST_SILENT]), 1 + sum(peer.processes for peer in peers), **more,
        )  # fmt: skip

    def snapshots(self) -> list[HostSnapshot]:
        return [HostSnapshot(**host) for host in self.hosts]

    def waiting(self) -> list[Wait]:
        return [Wait(*wait) for wait in self.waits]


@dataclass(frozen=True, slots=True)
class Orders(_Document):
    """What a process has to obey. ``share`` is the number of processes that divide the limits of the run."""

    share: int = 1
    stop: str = ""
    paused: bool = False
    limits: dict[str, Any] = field(default_factory=dict)  # those in force
    pauses: Pauses = field(default_factory=dict)  # of all processes
    # of a process on the same machine
    machine_share: int = 1  # processes of this machine
    until: float = 0.0  # end of the lease by the machine's steady clock

    def limits_in_force(self) -> Limits:
        return Limits.model_validate(self.limits)

    def apply(self, runtime: Runtime) -> None:
        """Stop, pause or resume the process, and pause the hosts that paused another one."""
        if self.stop:
            runtime.request_stop(self.stop)
        runtime.pause(self.paused)
        heed(runtime, self.pauses)


def heed(runtime: Runtime, pauses: Pauses) -> None:
    """Pause the hosts that another process has paused, for the seconds that were left as it said so."""
    if pauses:
        now = time.monotonic()
        runtime.heed({host: Pause(now + told[0], *told[1:]) for host, told in pauses.items()})


def seconds_left(pauses: Mapping[str, Pause]) -> Pauses:
    """Returns pauses, which end at times of this process's monotonic clock, as the seconds that are left."""
    now = time.monotonic()
    return {host: (max(0.0, pause.until - now), *pause[1:]) for host, pause in pauses.items()}


def describe_error(error: BaseException) -> dict[str, Any]:
    """Returns an error as JSON values, for :func:`error_of`."""
    if isinstance(error, ChunkIncomplete):
        return {"pending": error.pending, "why": error.why, "hopeless": error.hopeless}
    if isinstance(error, UserError):
        return {"user_error": str(error)}
    text = str(error) if isinstance(error, FerryError) else f"unexpected {type(error).__name__}: {error}"
    return {"fatal": text, "of_machine": isinstance(error, MachineFatal)}


def error_of(answer: Mapping[str, Any], chunk: str) -> FerryError:
    """Returns the error that a process's answer describes."""
    if "pending" in answer:
        return ChunkIncomplete(chunk, answer["pending"], answer["why"], hopeless=answer["hopeless"])
    if "user_error" in answer:
        return UserError(answer["user_error"])
    return (MachineFatal if answer.get("of_machine") else Fatal)(answer["fatal"])
