"""The state of one host's limit at one moment, for status output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """The limit of one host, its requests, and the reason for the limit."""

    host: str
    limit: int
    in_flight: int
    waiting: int
    paused_for_s: float
    why: str  # a sentence: what limits the host, and why
    requests_per_s: float | None = None  # the limit, learned or set by the user; None: no limit
    requests: int = 0
    refused: int = 0  # requests that ended in 429, 503 or SlowDown
    latency_s: float = 0.0  # average of recent requests
    at_limit: bool = False  # the user's limits hold requests back now
