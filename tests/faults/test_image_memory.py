"""Bodies that stand for much more than they are, each in a process of its own: memory and time are bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ferry.images.decode_memory import DECODE_BYTES
from tests.faults import bombs
from tests.faults.amount import each

ROOT = Path(__file__).parents[2]
MB = 1024 * 1024
pytestmark = pytest.mark.slow


def measured(names: Sequence[str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.faults.bombs", *names]
    ended = subprocess.run(command, cwd=ROOT, timeout=240, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_what_is_refused_costs_next_to_nothing(tried: Callable[..., None]) -> None:
    """Sizes that are claims alone, pixels that are not wanted, texts, profiles, tiles, entities, names without end: at
    most 128 MB (an SVG may have 64 MB), and a class that says why."""
    names = each(list(bombs.REFUSED), 12)
    found = measured(names)
    assert [one["name"] for one in found] == names
    for one in found:
        (end,) = one["ends"]
        assert end.startswith(("too_large: ", "not_image: ", "truncated: ")), one
        assert one["peak"] < 128 * MB, one
        assert one["size"] < 80 * MB, one
    tried("bodies that stand for much more than they are", len(found))


def test_what_is_taken_costs_its_bound(tried: Callable[..., None]) -> None:
    """A drawing at the limit of what is counted: below 600 MB, and in time that grows with its size alone."""
    found = measured(each(list(bombs.TAKEN), 1))
    for one in found:
        assert one["ends"] == ["taken"], one
        assert one["peak"] < 600 * MB, one
    tried("drawings at the limit of what is counted", len(found))


def test_two_at_once_do_not_take_twice_the_bound(tried: Callable[..., None]) -> None:
    """Whatever two threads decode, together it is a gigabyte (and a tenth: what the allocator keeps)."""
    found = measured(each(list(bombs.LARGE), 1))
    for one in found:
        assert one["ends"] == ["taken", "taken"], one
        assert one["peak"] < 1.1 * DECODE_BYTES, one
    tried("large pictures decoded at once", 2 * len(found))
