"""Rates of runs, and which runs are reported as slow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ferry.reconcile import run_rates
from ferry.reconcile.run_rates import Rate
from ferry.state.files import DirectoryState

USUAL = Rate(run_no=9, mode="full", rows=60_000, copied=60_000, bytes=2_400_000_000, seconds=600.0)  # 100 rows/s


@pytest.mark.parametrize(
    ("earlier", "alike"),
    [
        ({}, True),
        ({"mode": "delta"}, False),
        ({"copied": 57_001}, True),  # 5 points fewer
        ({"copied": 56_000}, False),  # it looked at rows that this one copied
        ({"bytes": 1_200_000_000}, True),
        ({"bytes": 1_100_000_000}, False),  # objects of less than half the size
        ({"bytes": 9_000_000_000}, True),  # larger ones: it had more to do, and was no faster for that
        ({"rows": 6_000, "copied": 6_000, "bytes": 240_000_000}, True),
        ({"rows": 5_900, "copied": 5_900, "bytes": 240_000_000}, False),  # a run of another size
        ({"rows": 700_000, "copied": 700_000, "bytes": 28_000_000_000}, False),
    ],
)
def test_which_runs_are_alike(earlier: dict[str, Any], alike: bool) -> None:
    """A run is comparable with runs that had at least as much to do per row."""
    assert run_rates.comparable(USUAL, replace(USUAL, **earlier)) is alike


@pytest.mark.parametrize(
    ("seconds", "earlier", "far"),
    [
        (1210.0, [600.0] * 3, True),
        (1190.0, [600.0] * 3, False),  # half as fast, and no slower
        (1210.0, [600.0] * 2, False),  # two say nothing of what is usual
        (1210.0, [60.0, 600.0, 1200.0], True),  # the median
        (1210.0, [60.0, 900.0, 1200.0], False),
        (6000.0, [60.0] * 5 + [3000.0] * 10, False),  # the last ten: what was usual once is so no longer
        (6100.0, [60.0] * 5 + [3000.0] * 10, True),
    ],
)
def test_far_slower_than_the_last_ten(seconds: float, earlier: list[float], far: bool) -> None:
    """A run is far slower if its rate is below half the median of at least three runs."""
    found = run_rates.slow(replace(USUAL, seconds=seconds), [replace(USUAL, seconds=each) for each in earlier])
    assert (found is not None) is far


def test_a_short_run_is_no_trouble() -> None:
    """A run of less than a minute or of few rows is never reported."""
    fast = [replace(USUAL, rows=500, copied=500, bytes=20_000_000, seconds=0.1)] * 5
    for rows, seconds, far in ((500, 61.0, True), (500, 59.0, False), (99, 61.0, False)):
        rate = Rate(10, "full", rows, rows, rows * 40_000, seconds)
        assert (run_rates.slow(rate, fast) is not None) is far


def test_the_file_does_not_grow(tmp_path: Path) -> None:
    """The file has the last 50 runs, and a damaged file is replaced without an error."""
    state = DirectoryState(tmp_path)
    assert run_rates.read_rates(state) == []
    for number in range(60):
        run_rates.keep_rates(state, [*run_rates.read_rates(state), replace(USUAL, run_no=number)])
    assert [rate.run_no for rate in run_rates.read_rates(state)] == list(range(10, 60))
    for damage in (b"", b"{}", b"[1]", (tmp_path / run_rates.NAME).read_bytes().replace(b"60000", b"60001", 1)):
        (tmp_path / run_rates.NAME).write_bytes(damage)
        assert run_rates.read_rates(state) == []
