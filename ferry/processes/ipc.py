"""Messages between the processes of a run. They may hold credentials, so they exist only in memory and pipes."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from ferry.http import Auth
from ferry.job import Job
from ferry.state import State, open_state
from ferry.storage import Access


@dataclass(frozen=True, slots=True)
class Message:
    """The job, state and credentials that every child process needs. Subclasses add fields that JSON can hold."""

    job: Job
    state: str
    cache_root: str
    source: Access
    destination: Access
    auth: Auth | None = field(default=None, kw_only=True)

    def encode(self) -> bytes:
        """Returns the message as JSON."""
        return json.dumps({**asdict(self), "job": self.job.model_dump(mode="json")}).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Returns the message of its JSON."""
        data = json.loads(raw)
        sides = {side: Access.decode(data[side]) for side in ("source", "destination")}
        return cls(**{**data, **sides, "auth": Auth.decode(data["auth"]), "job": Job.model_validate(data["job"])})

    def open_state(self) -> State:
        """Opens the job's state with the destination's credentials."""
        return open_state(self.state, self.destination, Path(self.cache_root))


_HEAD = struct.Struct(">iQ")  # a number (an exit code, 0 in requests) and the length of the message


def write_message(stream: Any, number: int, message: bytes) -> None:
    """Writes a message with a number. Raises BrokenPipeError if the other process has ended."""
    stream.write(_HEAD.pack(number, len(message)) + message)
    stream.flush()


def read_message(stream: Any) -> tuple[int, bytes] | None:
    """Returns the next number and message, or None if the other process has ended."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    number, length = _HEAD.unpack(head)
    message = stream.read(length)
    return (number, message) if len(message) == length else None
