"""Retries of requests that transfer no object: which errors are retried, and the waits between tries."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from ferry.core.errors import Fatal, ObjectError
from ferry.core.records import ErrorClass
from ferry.core.retry import Tries, worth_another_try

ANSWERS = [(status, True) for status in (200, 408, 409, 425, 429, 500, 502, 503, 504, 599)]
ANSWERS += [(404, True)]  # without a missing thing named: perhaps from a proxy
ANSWERS += [(status, False) for status in (301, 307, 400, 403, 405, 412, 416, 501, 505, 507)]


@pytest.mark.parametrize(("status", "expected"), ANSWERS)
def test_which_answers_of_a_store_are_worth_another_try(status: int, expected: bool) -> None:
    """worth_another_try follows its truth table for each status of a store."""
    assert worth_another_try(ObjectError(ErrorClass.STORE_ERROR, "x", status_code=status)) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Fatal("credentials"), False),
        (ObjectError(ErrorClass.NOT_FOUND, "x", status_code=404), False),
        (ObjectError(ErrorClass.FORBIDDEN, "x", status_code=403), False),
        (ObjectError(ErrorClass.BLOCKED_ADDRESS, "x"), False),
        (ObjectError(ErrorClass.TIMEOUT, "x"), True),
        (ObjectError(ErrorClass.CONNECTION, "x"), True),
        (ObjectError(ErrorClass.DNS, "x"), True),
        (ObjectError(ErrorClass.TRUNCATED, "x"), True),
        (ObjectError(ErrorClass.STORE_ERROR, "x"), True),
        (ObjectError(ErrorClass.RATE_LIMITED, "x", status_code=429), True),
        (ObjectError(ErrorClass.SERVER_ERROR, "x", status_code=503), True),
    ],
)
def test_which_errors_are_worth_another_try(error: ObjectError | Fatal, expected: bool) -> None:
    """worth_another_try follows its truth table for each error class."""
    assert worth_another_try(error) is expected


def tried(error: ObjectError | Fatal, good_after: int) -> tuple[int, list[float], bool]:
    """Retry work that fails ``good_after`` times; return the number of calls, the waits, and whether it succeeded."""
    calls, waits = 0, list[float]()

    def work() -> str:
        nonlocal calls
        calls += 1
        if calls <= good_after:
            raise error
        return "done"

    try:
        good = Tries(sleep=waits.append, rng=random.Random(1))(work) == "done"
    except (ObjectError, Fatal) as raised:
        assert raised is error
        good = False
    return calls, waits, good


def test_five_tries_and_no_more() -> None:
    """Four failures are retried with growing random waits; the fifth is raised."""
    error = ObjectError(ErrorClass.STORE_ERROR, "x", status_code=503)
    calls, waits, good = tried(error, 4)
    assert (calls, good) == (5, True)
    assert [0.0 < wait <= most for wait, most in zip(waits, (0.5, 1.0, 2.0, 4.0), strict=True)] == [True] * 4
    assert len(set(waits)) == 4
    calls, waits, good = tried(error, 5)
    assert (calls, len(waits), good) == (5, 4, False)


@pytest.mark.parametrize(("good_after", "calls", "good"), [(0, 1, True), (2, 3, True), (3, 3, False)])
def test_as_many_tries_in_a_loop(good_after: int, calls: int, good: bool) -> None:
    """In an event loop, tries are counted the same way, and a timeout is not retried."""
    made: list[ObjectError] = []

    async def work(error: ObjectError) -> str:
        made.append(error)
        if len(made) <= good_after:
            raise error
        return "done"

    tries = Tries(attempts=3, base_s=0.001, rng=random.Random(1))
    with contextlib.nullcontext() if good else pytest.raises(ObjectError):
        assert asyncio.run(tries.call_async(lambda: work(ObjectError(ErrorClass.SERVER_ERROR, "x")))) == "done"
    assert len(made) == calls
    made.clear()
    with contextlib.nullcontext() if good_after == 0 else pytest.raises(ObjectError):
        asyncio.run(tries.call_async(lambda: work(ObjectError(ErrorClass.TIMEOUT, "x"))))
    assert len(made) == 1


def test_what_lasts_is_raised_at_once() -> None:
    """A Fatal or a permanent error is raised at once, without a wait."""
    for error in (Fatal("x"), ObjectError(ErrorClass.STORE_ERROR, "x", status_code=405)):
        assert tried(error, 1) == (1, [], False)


def test_retry_after_is_kept_within_bounds() -> None:
    """A Retry-After lengthens the wait, up to the limit of 10 s."""
    for asked, waited in ((7.0, 7.0), (3600.0, 10.0)):
        _, waits, good = tried(ObjectError(ErrorClass.RATE_LIMITED, "x", status_code=429, retry_after_s=asked), 1)
        assert (waits, good) == ([waited], True)
