"""The cache key and the retry rules of chunk tasks."""

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
    """Returns a key of what decides a chunk's outcomes: Ferry's version, the job's fingerprint, the chunk's digest."""
    ref = parameters["ref"]
    return f"ferry-{__version__}-{parameters['fingerprint'][:32]}-{ref.digest[:32]}"


def chunk_delay_s(retries: Retries, retry: int, rng: random.Random) -> float:
    """Returns the seconds before a chunk's retry 1, 2, ...: doubled each time, at most 15 minutes, plus 0 to 20%."""
    return min(MAX_DELAY_S, retries.chunk_delay_s * 2.0 ** min(retry - 1, 32)) * rng.uniform(1.0, 1.0 + JITTER)


def worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """Returns whether Prefect retries a chunk: only for pending rows, unless the run stops or reached its limit."""
    run = runs.current()
    if run.runtime.stopping or run.runtime.limit_reached:
        return False
    error = _exception(state)
    return isinstance(error, ChunkIncomplete) and not error.hopeless


def _exception(state: Any) -> BaseException | None:
    data = getattr(state, "data", None)
    if isinstance(data, BaseException):
        return data
    result = getattr(data, "result", None)  # inside a ResultRecord
    return result if isinstance(result, BaseException) else None
