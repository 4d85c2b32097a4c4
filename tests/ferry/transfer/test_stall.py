"""When a run in which nothing moves says so, and when it is ended."""

from __future__ import annotations

import asyncio

import pytest

from ferry.transfer.stall import (
    END_S,
    LOOK_S,
    MOST_GAP_S,
    TELL_S,
    Action,
    Moment,
    Silence,
    Wait,
    Waits,
    Watchdog,
    in_words,
    is_excused,
    judge,
)

NOTHING, TELL, END = Action.NOTHING, Action.TELL, Action.END


@pytest.mark.parametrize(
    ("pending", "excused", "still_s", "quiet_s", "action"),
    [
        (False, False, 9999.0, 9999.0, NOTHING),
        (True, True, 9999.0, 9999.0, NOTHING),
        (True, False, TELL_S - 1, TELL_S - 1, NOTHING),
        (True, False, TELL_S, TELL_S, TELL),
        (True, False, TELL_S, 0.0, TELL),
        (True, False, END_S - 1, END_S - 1, TELL),
        (True, False, 9999.0, END_S - 1, TELL),
        (True, False, END_S, END_S, END),
    ],
)
def test_the_decision(pending: bool, excused: bool, still_s: float, quiet_s: float, action: Action) -> None:
    """The table of judge()."""
    assert judge(pending=pending, excused=excused, still_s=still_s, quiet_s=quiet_s) is action


KNOWN, UNKNOWN, NONE = Wait("a retry", 3, True), Wait("an answer", 1), Wait("memory", 0)


@pytest.mark.parametrize(
    ("paused", "waits", "excused"),
    [
        (True, [], True),
        (True, [UNKNOWN], True),
        (False, [UNKNOWN], False),
        (False, [UNKNOWN, KNOWN], False),
        (False, [KNOWN], True),
        (False, [KNOWN, NONE], True),
        (False, [NONE], False),
        (False, [], False),
    ],
)
def test_what_excuses_a_standstill(paused: bool, waits: list[Wait], excused: bool) -> None:
    """The table of is_excused()."""
    assert is_excused(paused, waits) is excused


def seconds(watchdog: Watchdog, begin: float, count: int, moment: Moment) -> list[Action]:
    return [watchdog.look(begin + number * LOOK_S, moment) for number in range(1, count + 1)]


def test_a_run_that_stands_still() -> None:
    """Said after two minutes, ended after ten; a row restarts both counts, a piece of a body the second."""
    watchdog, stuck = Watchdog(0.0), Moment(5, 5, True, False)
    watchdog.look(0.0, stuck)
    actions = seconds(watchdog, 0.0, int(END_S), stuck)
    assert actions.index(TELL) + 1 == TELL_S
    assert actions.index(END) + 1 == END_S
    assert watchdog.look(END_S + 1, Moment(6, 5, True, False)) is NOTHING
    again = seconds(watchdog, END_S + 1, int(END_S) - 100, Moment(6, 5, True, False))
    assert TELL in again
    assert END not in again
    after = 2 * END_S - 99
    assert watchdog.look(after, Moment(6, 6, True, False)) is TELL
    assert END not in seconds(watchdog, after, int(END_S) - 1, Moment(6, 6, True, False))


def test_the_first_look() -> None:
    """A run that has moved nothing by then stands still since it began; a wait without a known end excuses nothing."""
    watchdog = Watchdog(0.0)
    watchdog.look(4.0, Moment(0, 0, True, is_excused(False, [Wait("memory", 1)])))
    assert (watchdog.still_s, watchdog.quiet_s) == (4.0, 4.0)


def test_what_is_excused_does_not_count() -> None:
    """After a pause, or the end of an announced wait, the two minutes begin."""
    watchdog = Watchdog(0.0)
    assert set(seconds(watchdog, 0.0, 5000, Moment(5, 5, True, True))) == {NOTHING}
    assert set(seconds(watchdog, 5000.0, int(TELL_S) - 1, Moment(5, 5, True, False))) == {NOTHING}


def test_a_machine_that_was_suspended() -> None:
    """An hour between two looks is five seconds: neither the run nor an engine process is taken for dead."""
    watchdog, silence = Watchdog(0.0), Silence(0.0)
    watchdog.look(1.0, Moment(5, 5, True, False))
    assert watchdog.look(3601.0, Moment(5, 5, True, False)) is NOTHING
    assert watchdog.still_s <= MOST_GAP_S
    silence.look(1.0, 4)
    assert silence.look(3601.0, 4) <= MOST_GAP_S
    assert silence.look(3602.0, 5) == 0.0
    assert [silence.look(3602.0 + number, 5) for number in range(1, 4)] == [1.0, 2.0, 3.0]


def test_the_sentence() -> None:
    """Who waits for what, those under way first; at most five."""
    waits = [Wait("memory", 40), Wait("an answer of img.example", 12), Wait("an answer of img.example", 1), NONE]
    assert in_words(130.0, [Wait("memory", 40), Wait("x", 0)]) == "nothing settled for 2:10: 40 rows wait for memory"
    assert in_words(61.9, waits) == (
        "nothing settled for 1:01: 40 rows wait for memory, 13 for an answer of img.example"
    )
    assert in_words(5.0, [Wait("memory", 1)]) == "nothing settled for 0:05: 1 row waits for memory"
    assert in_words(5.0, []) == "nothing settled for 0:05: no row is under way"
    assert in_words(5.0, [Wait(name, 2) for name in "abcdefg"]) == (
        "nothing settled for 0:05: 2 rows wait for a, 2 for b, 2 for c, 2 for d, 2 for e, and 2 more"
    )


def test_the_step_of_each_row() -> None:
    """A row waits for one thing at a time, and for nothing once it is over."""
    waits = Waits()

    async def row(step: str) -> None:
        waits.on("an answer")
        waits.on(step)
        waits.moved()
        await asyncio.sleep(0.01)
        waits.over()

    async def rows() -> None:
        tasks = [asyncio.create_task(row(step)) for step in ("memory", "memory", "a check")]
        await asyncio.sleep(0)
        assert waits.rows() == {"memory": 2, "a check": 1}
        await asyncio.gather(*tasks)

    asyncio.run(rows())
    assert not waits.rows()
    assert waits.pieces == 3
