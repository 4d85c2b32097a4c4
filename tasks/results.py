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

from prefect.context import FlowRunContext
from prefect.filesystems import WritableFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]  # re-exported since 3.4
from prefect.serializers import JSONSerializer
from pydantic import PrivateAttr, TypeAdapter

from tasks.engine.chunk import ChunkResult
from tasks.engine.seal import open_json, seal_json
from tasks.engine.state import State

_RESULT = TypeAdapter(ChunkResult)


class StateResults(WritableFileSystem):
    """A result storage of Prefect's that is never saved as a block: a run makes its own."""

    _state: State = PrivateAttr()

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """Prefect's record of a chunk. What is missing, damaged or no such result raises: to Prefect that is a miss."""
        kept = _RESULT.validate_json(json.dumps(open_json(self._state.read(_name(path)))), strict=True)
        metadata = ResultRecordMetadata(storage_key=path, serializer=JSONSerializer())
        return ResultRecord(metadata=metadata, result=dataclasses.asdict(kept)).serialize()

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        """Keeps a chunk's result. Anything else (an exception that Prefect wants kept) is left out."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            kept = _RESULT.validate_json(json.loads(content)["result"], strict=True)
            self._state.write(_name(path), seal_json(dataclasses.asdict(kept)))

    def _resolve_path(self, _: str) -> None:
        """Prefect asks where a key lies: nowhere but under its own name."""


def _name(key: str) -> str:
    """Keys are tasks.policies.chunk_cache_key's, or Prefect's own UUIDs."""
    if not key.replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"{key!r} is no key of a result")
    return f"results/{key}.json"


@contextlib.contextmanager
def kept_in(state: State) -> Iterator[None]:
    """Inside a flow: what its tasks keep lies in this state."""
    context: Any = FlowRunContext.get()
    results = StateResults()
    results._state = state
    before = context.result_store
    context.result_store = before.model_copy(update={"result_storage": results, "serializer": JSONSerializer()})
    try:
        yield
    finally:
        context.result_store = before
