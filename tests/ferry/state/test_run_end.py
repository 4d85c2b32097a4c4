"""The end of a run is recorded, and a run without one was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferry.state import append_outcomes
from ferry.state.run_end import lost_run, read_end, write_end
from tests.support.helpers import directory_state, make_outcome


def test_the_last_end_counts(tmp_path: Path) -> None:
    """Of several ends the newest is read; one that is damaged, or none, is none."""
    state = directory_state(tmp_path)
    assert read_end(state) is None
    for run_no, message in ((2, "Completed"), (10, "Failed: 3 rows failed"), (9, "Completed")):
        write_end(state, run_no, message)
    end = read_end(state)
    assert end is not None
    assert (end.run_no, end.message) == (10, "Failed: 3 rows failed")
    assert end.ended_at.endswith("+00:00")
    state.write("reports/run-000010/end.json", b"{")
    assert read_end(state) is None


@pytest.mark.parametrize("ending", ["end.json", "summary.json"])
def test_a_run_that_left_outcomes_and_no_end(ending: str, tmp_path: Path) -> None:
    """It was killed. A summary is an end as well: runs of earlier versions have no other."""
    state = directory_state(tmp_path)
    assert lost_run(state) is None
    append_outcomes(state, [make_outcome(1)], 3, "c", 0)
    assert lost_run(state) == 3
    state.write(f"reports/run-000003/{ending}", b"{}")
    assert lost_run(state) is None
    append_outcomes(state, [make_outcome(2)], 4, "c", 0)
    assert lost_run(state) == 4
