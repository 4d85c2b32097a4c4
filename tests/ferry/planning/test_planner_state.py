"""Files that planning keeps in the state from run to run, and those that it reads first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import Damaged
from ferry.job.model import Job
from ferry.state import ledger
from ferry.state.checksums import encode_checked_json
from ferry.state.files import DirectoryState
from ferry.state.plan_file import (
    HINTS,
    LOCATION_FILE,
    PLAN_FILE,
    Plan,
    Planned,
    read_location,
    read_plan,
    set_plan_aside,
)
from tests.support.helpers import directory_state, make_job, plan, settle, urls, write_list

pytestmark = pytest.mark.matrix


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    return directory_state(tmp_path)


class Night:
    """A job whose manifest changes from plan to plan."""

    def __init__(self, folder: Path, state: DirectoryState, **given: Any) -> None:
        self.folder, self.state, self.run_no, self.given = folder, state, 0, given

    @property
    def job(self) -> Job:
        destination = f"file://{self.folder}/out/"
        return make_job(manifest=str(self.folder / "list.csv"), destination=destination, **self.given)

    def plan(self, rows: int, unusable: int = 0, doubled: int = 0, **ask: Any) -> Planned:
        lines = [*urls(*range(rows)), *[["no-address"]] * unusable, *urls(*range(doubled))]
        write_list(self.folder / "list.csv", lines)
        self.run_no += 1
        return plan(self.job, self.state, self.run_no, **ask)

    def in_force(self) -> Plan:
        found = read_plan(self.state)
        assert found is not None
        return found


@pytest.fixture
def night(tmp_path: Path, state: DirectoryState) -> Night:
    return Night(tmp_path, state)


def test_only_the_list_in_force_is_kept(night: Night) -> None:
    """Normalised manifest and hints of an earlier plan are deleted once a new plan is in force."""
    night.given = {"mode": "delta"}
    for ref in night.plan(3).chunks:
        settle(night.state, ref, 1)
    first = night.in_force().manifest["file"]
    assert [name for name in night.state.list("plan") if name.startswith("plan/manifest-")] == [first]
    night.state.write(f"{HINTS}/of-an-earlier-plan.parquet", b"x")
    planned = night.plan(4)
    hints = set(night.state.list(HINTS))
    assert hints
    assert hints == {chunk.hints for chunk in planned.chunks} - {""}
    second = night.in_force().manifest["file"]
    assert [name for name in night.state.list("plan") if name.startswith("plan/manifest-")] == [second]
    assert second != first


def test_a_lost_ledger_is_found_before_anything_is_planned(night: Night) -> None:
    """A missing ledger file stops the plan, since all rows would be copied again."""
    (ref,) = night.plan(3).chunks
    settle(night.state, ref, 1)
    (name,) = ledger.compact_ledger(night.state, 1)
    night.state.write("reports/run-000001/summary.json", encode_checked_json({"ledger": name}))
    night.plan(3)
    night.state.delete([name])
    with pytest.raises(Damaged, match=name):
        night.plan(3)


@pytest.mark.parametrize(
    ("rows", "unusable", "doubled", "shorter"),
    [
        (20, 0, 0, ""),
        (18, 0, 0, ""),
        (17, 0, 0, "The manifest has 17 usable rows, and the last one had 20."),
        (17, 3, 0, "The manifest has 17 usable rows, and the last one had 20."),
        (17, 0, 3, "The manifest has 17 usable rows, and the last one had 20."),
    ],
)
def test_a_list_that_is_shorter(rows: int, unusable: int, doubled: int, shorter: str, night: Night) -> None:
    """A manifest with over a tenth fewer usable rows gives a warning, also in a dry plan."""
    night.plan(20)
    assert night.plan(rows, unusable, doubled, dry=True).shorter.startswith(shorter)
    found = night.plan(rows, unusable, doubled)
    assert found.shorter.startswith(shorter)
    assert bool(found.shorter) is bool(shorter)
    assert (night.in_force().usable, night.in_force().expected_rows) == (rows, 20 if shorter else rows)
    assert read_location(night.state) == replace(found_place(night), expected_rows=night.in_force().expected_rows)


def found_place(night: Night) -> Any:
    place = read_location(night.state)
    assert place is not None
    return place


def test_rows_of_an_earlier_version_s_plan(night: Night) -> None:
    """After a plan that counted all rows, the next one compares all rows, and later ones usable rows."""
    night.plan(20, 5)
    older = replace(night.in_force(), usable=0, expected_rows=0)
    night.state.write(PLAN_FILE, older.encode())
    assert night.plan(18, 5).shorter == ""
    assert (night.in_force().usable, night.in_force().expected_rows) == (18, 18)
    assert "has 16 usable rows, and the last one had 18" in night.plan(16, 9).shorter


def test_what_a_list_is_believed_to_have_outlives_a_replan(night: Night) -> None:
    """The expected rows survive --replan and a damaged plan, but not a change of the location."""
    night.plan(20)
    night.plan(10)
    night.state.write(PLAN_FILE, b"damaged")
    assert "and the last one had 20" in night.plan(10).shorter
    assert night.in_force().expected_rows == 20
    set_plan_aside(night.state)
    assert "and the last one had 20" in night.plan(10).shorter
    set_plan_aside(night.state)
    night.given = {"key": "x/{source.name}"}
    assert night.plan(10).shorter == ""
    assert night.in_force().expected_rows == 10


def test_what_was_done_at_another_place_counts_for_nothing(night: Night) -> None:
    """After a --replan to another location only outcomes since that run count."""
    (ref,) = night.plan(3).chunks
    assert night.in_force().since_run == 0
    settle(night.state, ref, 1)
    set_plan_aside(night.state)
    assert night.plan(3).todo == {}
    assert night.in_force().since_run == 0
    set_plan_aside(night.state)
    night.given = {"key": "x/{source.name}"}
    assert night.plan(3).todo == {"new": 3}
    assert night.in_force().since_run == 3
    night.state.delete([LOCATION_FILE])
    set_plan_aside(night.state)
    assert night.plan(3).todo == {"new": 3}
    assert night.in_force().since_run == 4
