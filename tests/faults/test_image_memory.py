"""Memory and time of bodies that need far more than their size, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ferry.images.decode import TOTAL_BYTES
from tests.faults import bombs
from tests.faults.amount import each

ROOT = Path(__file__).parents[2]
MB = 1024 * 1024
MAX_BYTES = 1.1 * TOTAL_BYTES  # plus libraries, and memory that the allocator keeps
pytestmark = pytest.mark.slow


def measured(names: Sequence[str], seconds: int = 20) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.faults.bombs", str(seconds), *names]
    ended = subprocess.run(command, cwd=ROOT, timeout=400, check=True, stdout=subprocess.PIPE, text=True)
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [one["name"] for one in found] == list(names)
    for one in found:
        assert one["peak"] < 128 * MB or one["name"] in bombs.LARGE, (
            one
        )  # an SVG may have 64 MB, and mapped files count
        assert one["children"] < MAX_BYTES, one
    return found


def test_what_is_refused_costs_next_to_nothing(tried: Callable[..., None]) -> None:
    """Bodies with huge sizes, texts, profiles, tiles or entities are refused with an error class.

    They take at most 128 MB in this process and a gigabyte in its children.
    """
    found = measured(each(list(bombs.REFUSED), 12))
    for one in found:
        (end,) = one["ends"]
        assert end.startswith(("too_large: ", "not_image: ", "truncated: ")), one
        assert one["size"] < 80 * MB, one
    tried("bodies that stand for much more than they are", len(found))


def test_what_takes_long_is_ended(tried: Callable[..., None]) -> None:
    """Bodies of millions of small pieces, or of pictures that overlap, end at the limit on processor time."""
    found = measured(each(list(bombs.SLOW), 2), seconds=1)
    for one in found:
        (end,) = one["ends"]
        assert end.startswith("too_large: "), one
        assert " takes " in end, one
    tried("bodies that take long", len(found))


def test_what_is_taken_costs_its_limit(tried: Callable[..., None]) -> None:
    """Large but valid images pass, within the same memory."""
    found = measured(each(list(bombs.TAKEN), 2))
    for one in found:
        assert one["ends"] == ["taken"], one
    tried("drawings at the limit of what is counted", len(found))


def test_two_at_once_do_not_take_twice_the_limit(tried: Callable[..., None]) -> None:
    """Two threads that decode together take at most a gigabyte, plus a tenth that the allocator keeps."""
    found = measured(each(list(bombs.LARGE), 1))
    for one in found:
        assert one["ends"] == ["taken", "taken"], one
    tried("large pictures decoded at once", 2 * len(found))
