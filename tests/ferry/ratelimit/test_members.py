"""Which runs that share limits count as live, and what part of its limits a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from ferry.job.limits import Limits
from ferry.ratelimit.follower import LimitsFollower
from ferry.ratelimit.members import BEAT_S, DEAD_S, Members
from tests.support.helpers import directory_state


def test_a_run_lives_while_its_beat_changes() -> None:
    """The table of Members.count: only changes count, and a beat may also fall, as in another process."""
    members = Members()
    assert members.count(0, {}) == 0
    assert members.count(5, {"a": 7, "b": 1}) == 2
    for now in range(10, 35, 5):
        assert members.count(now, {"a": 7 + now, "b": 1}) == 2
    assert members.count(5 + DEAD_S, {"a": 3, "b": 1}) == 1
    assert members.count(10 + DEAD_S, {"a": 4, "b": 2}) == 2
    assert members.count(15 + DEAD_S, {"b": 3}) == 1


def test_a_server_that_was_away_ends_no_run() -> None:
    """While this run could not read, the others could not write: an hour without it is not silence."""
    members = Members()
    members.count(0, {"a": 1})
    lives = [members.count(3600 + BEAT_S * read, {"a": 1}) for read in range(5)]
    assert lives == [1, 1, 1, 1, 0]


def test_a_slow_server_hides_no_death() -> None:
    """Reads that come seldom add up, too."""
    members = Members()
    lives = [members.count(60 * read, {"a": 1}) for read in range(5)]
    assert lives == [1, 1, 1, 0, 0]


def test_the_part_of_a_run(tmp_path: Path) -> None:
    """A run takes an equal part of its job's limits, says so when it changes, and all of them when it is alone."""
    given = Limits.model_validate(
        {"shared": "old", "requests_per_s": 30, "concurrency": 5, "hosts": {"a.example": {"bytes_per_s": 3000}}}
    )
    live = 1
    follower = LimitsFollower(directory_state(tmp_path), given, members=lambda: live)
    assert follower.update() == []
    assert (follower.limits.requests_per_s, follower.limits.concurrency) == (30, 5)
    live = 3
    assert follower.update() == ["limits: 3 live runs with limits.shared: old; each takes 1/3 of its job's"]
    assert (follower.limits.requests_per_s, follower.limits.concurrency) == (10, 1)
    assert follower.limits.of_host("a.example")[1].bytes_per_s == 1000
    assert follower.update() == []
    live = 1
    assert follower.update() == ["limits: 1 live run with limits.shared: old; this one takes all"]
    assert follower.limits.requests_per_s == 30


@pytest.mark.parametrize("limits", [{"shared": "old"}, {"shared": "", "requests_per_s": 1}, {"shared": "a b"}])
def test_what_cannot_be_shared(limits: dict[str, object]) -> None:
    """A name without a limit shares nothing; a name that is empty or has other characters is a mistake."""
    with pytest.raises(ValidationError, match="shared"):
        Limits.model_validate(limits)


def test_limits_of_a_timetable_alone_can_be_shared() -> None:
    """The limit may come with the hour, and so may that of a single host."""
    for limits in ({"timetable": [{"time": "08:00-18:00", "requests_per_s": 5}]}, {"hosts": {"a": {"concurrency": 2}}}):
        assert Limits.model_validate({"shared": "old", **limits}).shared == "old"
