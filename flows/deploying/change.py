"""A change that `ferry deploy` makes at the Prefect server."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Change:
    """One object at the server, and what was done to it."""

    kind: str
    name: str
    what: Literal["created", "updated", "unchanged", "removed"]
    detail: str = ""
