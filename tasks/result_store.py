"""The storage of chunk results for Prefect's cache: counts as JSON in the job's state, for reruns on any machine.

Prefect's own record names the serializer that reads it: write access to such a file is enough to choose pickle, and so
to execute code. For a bucket, Prefect also requires a saved block, with credentials in its database. So the state
stores five plain values, which are validated when they are read, and Ferry builds Prefect's record around them
(docs/decisions/0017).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from pydantic import PrivateAttr, TypeAdapter

from ferry.state import State, decode_checked_json, encode_checked_json
from ferry.transfer import ChunkResult
from tasks.prefect_patches import OwnStorage, results_in

_RESULT = TypeAdapter(ChunkResult)


class StateResults(OwnStorage):
    """A result storage in a job's state."""

    _state: State = PrivateAttr()

    def kept(self, key: str) -> Any:
        """Returns a chunk's result. Raises for a result that is missing, damaged or invalid."""
        content = decode_checked_json(self._state.read(_name(key)))
        return dataclasses.asdict(_RESULT.validate_json(json.dumps(content), strict=True))

    def keep(self, key: str, content: bytes) -> None:
        """Store a chunk's result. Other values, such as an exception that Prefect wants to store, are ignored."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            kept = _RESULT.validate_json(json.loads(content)["result"], strict=True)
            self._state.write(_name(key), encode_checked_json(dataclasses.asdict(kept)))


def _name(key: str) -> str:
    """Returns the file of a key, which is from tasks.policies.chunk_cache_key or one of Prefect's UUIDs."""
    if not key.replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"{key!r} is not the key of a result")
    return f"results/{key}.json"


@contextlib.contextmanager
def storing_results_in(state: State) -> Iterator[None]:
    """Store the results of a flow's tasks in this state."""
    results = StateResults()
    results._state = state
    with results_in(results):
        yield
