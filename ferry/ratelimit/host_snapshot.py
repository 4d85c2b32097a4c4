"""What is done at a host at one moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """The state of one host, for status output."""

    host: str
    limit: int
    in_flight: int
    waiting: int
    paused_for_s: float
    why: str  # a sentence: what the limiter does, and why
    requests_per_s: float | None = None  # the ceiling, found or set by the user; None: there is none
    requests: int = 0
    refused: int = 0  # of them with 429, 503, SlowDown
    latency_s: float = 0.0  # of recent requests
