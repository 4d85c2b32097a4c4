"""What Prefect's cache keeps of a chunk: its counts, as JSON in the job's state, so that a rerun finds it anywhere.

Prefect's own record names the serializer that reads it: whoever can write such a file chooses pickle, and with it the
code that runs. And to reach a bucket Prefect wants a saved block, with credentials in its database. So the state keeps
five plain values, checked when they are read, and Prefect's record is made around them (docs/decisions/0017).
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
    """The results of a state."""

    _state: State = PrivateAttr()

    def kept(self, key: str) -> Any:
        """A chunk's result. What is missing, damaged or no such result raises."""
        content = decode_checked_json(self._state.read(_name(key)))
        return dataclasses.asdict(_RESULT.validate_json(json.dumps(content), strict=True))

    def keep(self, key: str, content: bytes) -> None:
        """Keeps a chunk's result. Anything else (an exception that Prefect wants kept) is left out."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            kept = _RESULT.validate_json(json.loads(content)["result"], strict=True)
            self._state.write(_name(key), encode_checked_json(dataclasses.asdict(kept)))


def _name(key: str) -> str:
    """Keys are tasks.policies.chunk_cache_key's, or Prefect's own UUIDs."""
    if not key.replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"{key!r} is no key of a result")
    return f"results/{key}.json"


@contextlib.contextmanager
def kept_in(state: State) -> Iterator[None]:
    """Inside a flow: what its tasks keep lies in this state."""
    results = StateResults()
    results._state = state
    with results_in(results):
        yield
