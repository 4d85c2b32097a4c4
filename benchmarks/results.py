"""The result of one run, as in the JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Result:
    """The numbers of a run: seconds, milliseconds of CPU, megabytes (10^6). ``None``: unknown for this tool."""

    scene: str
    contender: str
    round: int
    objects: int
    valid: bool
    note: str
    code: int
    wall_s: float
    command: str = ""
    output: str = ""  # the end of the output of an invalid run
    rate: float | None = None  # objects a second while it was steady
    steady_s: float | None = None
    fixed_s: float | None = None  # wall - steady
    megabytes_s: float | None = None
    cpu_ms: float | None = None  # of the client, per object: all of it
    steady_cpu_ms: float | None = None  # between the first request and the last answer
    peak_mb: dict[str, float] = field(default_factory=dict)  # client, planner, server
    cpu_s: dict[str, float] = field(default_factory=dict)
    first_stored_s: float | None = None  # from the start to the first object at the destination
    statuses: dict[str, int] = field(default_factory=dict)  # of the origin's answers to GET
    refused_later: float | None = None  # share of 429s after the first ten seconds
    curve: list[float] = field(default_factory=list)  # objects a second in each hundredth of the objects
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds after the first request, MB of the client
    memory_at: dict[str, float] = field(
        default_factory=dict
    )  # MB of the client after a tenth of the objects, at the end

    def as_json(self) -> dict[str, Any]:
        return {name: _rounded(value) for name, value in asdict(self).items() if value not in (None, [], {}, "")}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
