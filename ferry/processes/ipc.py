"""What another process of a run is told: for which job it works, and with what. Held in memory and pipes alone."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ferry.job import Job
from ferry.state import State, open_state
from ferry.storage import Access


@dataclass(frozen=True, slots=True)
class Message:
    """The part that all of them need; its subclasses add fields that JSON knows."""

    job: Job
    state: str
    cache_root: str
    source: Access
    destination: Access

    def encode(self) -> bytes:
        return json.dumps({**asdict(self), "job": self.job.model_dump(mode="json")}).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        data = json.loads(raw)
        sides = {side: Access.decode(data[side]) for side in ("source", "destination")}
        return cls(**{**data, **sides, "job": Job.model_validate(data["job"])})

    def open_state(self) -> State:
        return open_state(self.state, self.destination, Path(self.cache_root))


_HEAD = struct.Struct(">iQ")  # a number (an exit code, 0 in requests), the length of the message


def write_message(stream: Any, number: int, message: bytes) -> None:
    """Raises BrokenPipeError when the other end is gone."""
    stream.write(_HEAD.pack(number, len(message)) + message)
    stream.flush()


def read_message(stream: Any) -> tuple[int, bytes] | None:
    """The next message, or None when the other end is gone."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    number, length = _HEAD.unpack(head)
    message = stream.read(length)
    return (number, message) if len(message) == length else None
