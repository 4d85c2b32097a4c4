"""When a stalled run warns, and when it ends."""

from __future__ import annotations

import asyncio

import pytest

from ferry.transfer.stall import (
    CHECK_S,
    END_S,
    MAX_GAP_S,
    WARN_S,
    Action,
    Moment,
    Silence,
    Wait,
    Waits,
    Watchdog,
    decide,
    describe_silence,
    describe_stall,
    is_excused,
)

NOTHING, WARN, END = Action.NOTHING, Action.WARN, Action.END


@pytest.mark.parametrize(
    ("pending", "excused", "still_s", "quiet_s", "action"),
    [
        (False, False, 9999.0, 9999.0, NOTHING),
        (True, True, 9999.0, 9999.0, NOTHING),
        (True, False, WARN_S - 1, WARN_S - 1, NOTHING),
        (True, False, WARN_S, WARN_S, WARN),
        (True, False, WARN_S, 0.0, WARN),
        (True, False, END_S - 1, END_S - 1, WARN),
        (True, False, 9999.0, END_S - 1, WARN),
        (True, False, END_S, END_S, END),
    ],
)
def test_the_decision(pending: bool, excused: bool, still_s: float, quiet_s: float, action: Action) -> None:
    """The table of decide() holds."""
    assert decide(pending=pending, excused=excused, still_s=still_s, quiet_s=quiet_s) is action


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
    """The table of is_excused() holds."""
    assert is_excused(paused, waits) is excused


def seconds(watchdog: Watchdog, begin: float, count: int, moment: Moment) -> list[Action]:
    return [watchdog.check(begin + number * CHECK_S, moment) for number in range(1, count + 1)]


def test_a_run_that_stands_still() -> None:
    """A stall warns after two minutes and ends after ten; a finished row resets both."""
    watchdog, stuck = Watchdog(0.0), Moment(5, 5, True, False)
    watchdog.check(0.0, stuck)
    actions = seconds(watchdog, 0.0, int(END_S), stuck)
    assert actions.index(WARN) + 1 == WARN_S
    assert actions.index(END) + 1 == END_S
    assert watchdog.check(END_S + 1, Moment(6, 5, True, False)) is NOTHING
    again = seconds(watchdog, END_S + 1, int(END_S) - 100, Moment(6, 5, True, False))
    assert WARN in again
    assert END not in again
    after = 2 * END_S - 99
    assert watchdog.check(after, Moment(6, 6, True, False)) is WARN
    assert END not in seconds(watchdog, after, int(END_S) - 1, Moment(6, 6, True, False))


def test_the_first_look() -> None:
    """A run without progress since its start is stalled, unless all waits have a known end."""
    watchdog = Watchdog(0.0)
    watchdog.check(4.0, Moment(0, 0, True, is_excused(False, [Wait("memory", 1)])))
    assert (watchdog.still_s, watchdog.quiet_s) == (4.0, 4.0)


def test_what_is_excused_does_not_count() -> None:
    """The two minutes begin after a pause or an announced wait."""
    watchdog = Watchdog(0.0)
    assert set(seconds(watchdog, 0.0, 5000, Moment(5, 5, True, True))) == {NOTHING}
    assert set(seconds(watchdog, 5000.0, int(WARN_S) - 1, Moment(5, 5, True, False))) == {NOTHING}


def test_a_machine_that_was_suspended() -> None:
    """A gap of an hour between two checks counts as five seconds."""
    watchdog, silence = Watchdog(0.0), Silence(0.0)
    watchdog.check(1.0, Moment(5, 5, True, False))
    assert watchdog.check(3601.0, Moment(5, 5, True, False)) is NOTHING
    assert watchdog.still_s <= MAX_GAP_S
    silence.check(1.0, 4)
    assert silence.check(3601.0, 4) <= MAX_GAP_S
    assert silence.check(3602.0, 5) == 0.0
    assert [silence.check(3602.0 + number, 5) for number in range(1, 4)] == [1.0, 2.0, 3.0]


def test_the_sentence() -> None:
    """The sentence names up to five waits with their rows."""
    waits = [Wait("memory", 40), Wait("a response from img.example", 12), Wait("a response from img.example", 1), NONE]
    said = describe_stall(130.0, [Wait("memory", 40), Wait("x", 0)])
    assert said == "no row has finished for 2:10: 40 rows wait for memory"
    assert describe_stall(61.9, waits) == (
        "no row has finished for 1:01: 40 rows wait for memory, 13 for a response from img.example"
    )
    assert describe_stall(5.0, [Wait("memory", 1)]) == "no row has finished for 0:05: 1 row waits for memory"
    assert describe_stall(5.0, []) == "no row has finished for 0:05: no row is in progress"
    assert describe_stall(5.0, [Wait(name, 2) for name in "abcdefg"]) == (
        "no row has finished for 0:05: 2 rows wait for a, 2 for b, 2 for c, 2 for d, 2 for e, and 2 more"
    )


def test_the_step_of_each_row() -> None:
    """A row waits for one thing at a time, and for nothing once it has finished."""
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


def test_silent_hosts_in_words() -> None:
    """Three hosts are named, the others counted."""
    assert describe_silence({}) == ""
    assert (
        describe_silence({"img.old.example": "refuses connections"}) == "img.old.example refuses connections, retrying"
    )
    hosts = {f"h{n}": "does not resolve" for n in range(5)}
    assert describe_silence(hosts) == (
        "h0 does not resolve; h1 does not resolve; h2 does not resolve; 2 more hosts do not answer, retrying"
    )
