"""How much is tried. The tiers (`make test-all`) run the quick part of the fault experiments, `make faults` all of it.

`FERRY_FAULTS` names the folder for the table's lines; where it is not set, the run is a quick one.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
FOLDER = Path(os.environ["FERRY_FAULTS"]) if os.environ.get("FERRY_FAULTS") else None
LONG = FOLDER is not None
only_long = pytest.mark.skipif(not LONG, reason="in `make faults` alone")


def some(quick: int, long: int) -> int:
    """How many cases: few in the tiers, many in `make faults`."""
    return long if LONG else quick


def each(cases: Sequence[T], quick: int, seed: int = 4) -> list[T]:
    """All cases, or a seeded choice of ``quick`` of them, in their order."""
    if LONG or quick >= len(cases):
        return list(cases)
    return [cases[at] for at in sorted(random.Random(seed).sample(range(len(cases)), quick))]


def book(fault: str, times: int = 1, *, lost: int = 0, failed: bool = False) -> None:
    """A line for the table: a fault, how often it was tried, what was lost (objects, rows or secrets)."""
    if FOLDER is not None:
        line: dict[str, Any] = {"fault": fault, "times": times, "lost": lost, "failed": failed}
        with (FOLDER / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def book_lost(fault: str, stored: Mapping[str, bytes], bodies: Mapping[str, bytes]) -> None:
    """The same, for a test that compares all objects: the lost ones are missing, or have other bytes."""
    book(fault, lost=sum(stored.get(key) != body for key, body in bodies.items()))
