"""The cache of chunk results has only five plain values in the state, and no pickle."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]
from prefect.serializers import JSONSerializer, PickleSerializer

from ferry.state.checksums import encode_checked_json
from tasks.result_store import StateResults
from tests.support.helpers import directory_state

COUNTS: dict[str, Any] = {"chunk": "c", "counts": {"copied": 3}, "bytes": 9, "seconds": 0.5, "outcomes": "outcomes/x"}
KEY = "ferry-0.1.0-ab-cd"
fired: list[str] = []


class Bomb:
    """An object that records when it is unpickled."""

    def __reduce__(self) -> Any:
        return fired.append, ("fired",)


@pytest.fixture
def results(tmp_path: Path) -> StateResults:
    results = StateResults()
    results._state = directory_state(tmp_path)
    return results


def record(result: Any, serializer: Any) -> bytes:
    return ResultRecord(
        metadata=ResultRecordMetadata(storage_key=KEY, serializer=serializer), result=result
    ).serialize()


def test_a_chunks_result_comes_back(results: StateResults) -> None:
    """Prefect reads the result that it wrote, and the file has only the five values."""
    results.write_path(KEY, record(COUNTS, JSONSerializer()))
    assert ResultRecord.deserialize(results.read_path(KEY)).result == COUNTS
    kept = json.loads(results._state.read(f"results/{KEY}.json"))
    assert {name: value for name, value in kept.items() if name != "sha256"} == COUNTS


def test_nothing_else_is_kept(results: StateResults) -> None:
    """Exceptions, pickles and other values leave no file."""
    for content in (
        record(ValueError("x"), PickleSerializer()), record(COUNTS, PickleSerializer()), record([1], JSONSerializer()),
        record({**COUNTS, "bytes": "9"}, JSONSerializer()), b"{", b"",
    ):  # fmt: skip
        results.write_path(KEY, content)
    assert results._state.list("results") == []


@pytest.mark.parametrize(
    "planted",
    [
        pickle.dumps(Bomb()),
        record(COUNTS, PickleSerializer()),
        json.dumps(
            {"metadata": {"serializer": {"type": "pickle"}}, "result": PickleSerializer().dumps(Bomb()).decode()}
        ).encode(),
        encode_checked_json({**COUNTS, "counts": {"__class__": "tests.flows.test_results.Bomb", "data": {}}}),
        encode_checked_json({**COUNTS, "seconds": "0.5"}),
        json.dumps({**COUNTS, "sha256": "0" * 64}).encode(),
    ],
)
def test_what_was_planted_is_a_miss(planted: bytes, results: StateResults) -> None:
    """A forged file raises, which Prefect treats as a cache miss, and nothing in it is executed."""
    results._state.write(f"results/{KEY}.json", planted)
    with pytest.raises((ValueError, TypeError)):
        results.read_path(KEY)
    assert fired == []


@pytest.mark.parametrize("key", ["../plan/plan", "a/b", "", "/etc/passwd", "a\0b"])
def test_a_key_is_no_path(key: str, results: StateResults) -> None:
    """A key cannot name a file outside results/."""
    with pytest.raises(ValueError, match="not the key"):
        results.read_path(key)
