"""What `ferry deploy` did to one thing on the Prefect server."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Change:
    kind: str
    name: str
    what: Literal["created", "updated", "unchanged", "removed"]
    detail: str = ""
