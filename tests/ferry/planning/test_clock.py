"""Clocks that are set back, between runs and within one: no row waits too long, and the last outcome counts."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from demo.validators import Validators
from ferry.core.records import Checked, Status
from ferry.planning import collisions, row_facts
from ferry.state import ledger
from ferry.transfer import chunk
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.matrix

HOUR_S, DAY_S = 3600.0, 86_400.0
RULE: dict[str, Any] = {"delta": {"retry": {"not_found": {"after": "20h", "runs": 9}}}}


class Clock:
    """A wall clock for planning and outcomes that is a number of seconds ahead of the real one."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self, zone: Any) -> datetime:
        return datetime.now(zone) + timedelta(seconds=self.ahead_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (chunk, row_facts, collisions):
        monkeypatch.setattr(module, "datetime", made)
    return made


@pytest.fixture
def world(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> World:
    return World(origin, s3, bucket, tmp_path)


@pytest.mark.parametrize(
    ("passes_s", "tried"),
    [
        (21 * HOUR_S, True),
        (19 * HOUR_S, False),
        (-HOUR_S, True),  # it lies ahead: nobody knows how long ago that was
        (-30 * DAY_S, True),
    ],
)
def test_a_failed_row_does_not_wait_for_a_time_ahead(passes_s: float, tried: bool, world: World, clock: Clock) -> None:
    """A failed row whose last try is in the future is due at once."""
    world.put("gone.jpg", 1, fault=Trouble.NOT_FOUND)
    assert "gone.jpg" in world.night(**RULE)
    clock.ahead_s += passes_s
    assert ("gone.jpg" in world.night(**RULE)) is tried


@pytest.mark.slow
def test_nights_count_whatever_the_clock_says(world: World, clock: Clock) -> None:
    """The number of tries is limited even if the clock is set back in each run."""
    world.put("gone.jpg", 1, fault=Trouble.NOT_FOUND)
    rule: dict[str, Any] = {"delta": {"retry": {"not_found": {"after": "20h", "runs": 3}}}}
    tried = []
    for _ in range(5):
        tried.append("gone.jpg" in world.night(**rule))
        clock.ahead_s -= DAY_S
    assert tried == [True, True, True, False, False]


@pytest.mark.parametrize(("passes_s", "read"), [(-DAY_S, 0), (-31 * DAY_S, 1)])
def test_a_copy_is_not_believed_for_longer(passes_s: float, read: int, world: World, clock: Clock) -> None:
    """Bytes are read again if they were read more than `revalidate_after` before or after now."""
    world.put("a.jpg", 1, kind=Validators.NONE)
    world.night()
    clock.ahead_s += passes_s
    (outcome,) = world.night().values()
    assert world.read == read
    assert outcome.checked_by is (Checked.BODY if read else Checked.HEAD)


def test_what_happened_last_counts(world: World, clock: Clock) -> None:
    """A later run's outcome counts, before and after a fold, whatever its time is."""
    world.put("a.jpg", 1, fault=Trouble.NOT_FOUND)
    world.night()
    world.origin.mend("/a.jpg")
    clock.ahead_s -= DAY_S
    assert world.night()["a.jpg"].status is Status.COPIED
    world.put("a.jpg", 2, modified="Fri, 02 Jan 2026 00:00:00 GMT")
    clock.ahead_s -= DAY_S
    assert world.night()["a.jpg"].sha256 == helpers.latest(world.state).popitem()[1].sha256
    world.is_true()


def test_within_a_run_the_later_attempt_counts(tmp_path: Path) -> None:
    """Of two outcomes of one run, the one of the later attempt counts, whatever its time is."""
    state = helpers.directory_state(tmp_path)
    first = helpers.make_outcome(1, Status.FAILED, attempt=1, recorded_at=helpers.NOW)
    then = helpers.make_outcome(1, Status.COPIED, attempt=2, recorded_at=helpers.NOW - timedelta(hours=1))
    ledger.append_outcomes(state, [first], 1, "a" * 64, 0)
    ledger.append_outcomes(state, [then], 1, "b" * 64, 0)
    assert [outcome.status for outcome in helpers.latest(state).values()] == [Status.COPIED]
    ledger.compact_ledger(state, 1)
    assert [outcome.status for outcome in helpers.latest(state).values()] == [Status.COPIED]


@pytest.mark.slow
def test_within_a_run_of_the_engine(world: World, clock: Clock) -> None:
    """A clock that is set back during a run changes neither outcomes and counts nor the next run."""
    for n in range(6):
        world.put(f"{n}.jpg", n)
    calls = iter(range(1_000))
    now = clock.now

    def back(zone: Any) -> datetime:
        clock.ahead_s = -HOUR_S * next(calls)
        return now(zone)

    clock.now = back  # type: ignore[method-assign]
    assert {outcome.status for outcome in world.night().values()} == {Status.COPIED}
    world.is_true()
    assert {outcome.checked_by for outcome in world.night().values()} == {Checked.CONDITION}
    assert world.read == 0
    world.put("3.jpg", 9, modified="Fri, 02 Jan 2026 00:00:00 GMT")
    assert world.night()["3.jpg"].status is Status.COPIED
    world.is_true()
