"""Prefect's cache key and retries, as rules (SEMANTICS: plan and cache; rows and their states)."""

from __future__ import annotations

import random
from typing import Any

from ferry import __version__
from ferry.core import ChunkIncomplete
from ferry.job import Retries
from tasks import run as runs

MAX_DELAY_S = 900.0
JITTER = 0.2


def chunk_cache_key(_: Any, parameters: dict[str, Any]) -> str:
    """Engine version, job fingerprint and chunk digest: nothing else decides what a chunk comes to."""
    ref = parameters["ref"]
    return f"ferry-{__version__}-{parameters['fingerprint'][:32]}-{ref.digest[:32]}"


def chunk_delay_s(retries: Retries, retry: int, rng: random.Random) -> float:
    """Seconds before a chunk's retry 1, 2, ...: doubled each time, 15 minutes at most, and up to a fifth more."""
    return min(MAX_DELAY_S, retries.chunk_delay_s * 2.0 ** min(retry - 1, 32)) * rng.uniform(1.0, 1.0 + JITTER)


def worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect retries a chunk only for pending rows, and not once the run is to stop or its limit is reached."""
    run = runs.current()
    if run.runtime.stopping or run.runtime.limit_reached:
        return False
    return isinstance(_exception(state), ChunkIncomplete)


def _exception(state: Any) -> BaseException | None:
    data = getattr(state, "data", None)
    if isinstance(data, BaseException):
        return data
    result = getattr(data, "result", None)  # a ResultRecord around it
    return result if isinstance(result, BaseException) else None
