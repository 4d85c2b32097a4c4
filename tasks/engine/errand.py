"""What another process of a run is told: for which job it works, and with what. Held in memory and pipes alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tasks.engine.access import Access
from tasks.engine.job import Job
from tasks.engine.state import State, open_state


@dataclass(frozen=True, slots=True)
class Errand:
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
