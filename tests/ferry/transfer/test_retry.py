"""Backoff, Retry-After and the decision to retry."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.core.errors import ObjectError
from ferry.core.records import AGAIN, Again, ErrorClass
from ferry.core.retry import backoff_s
from ferry.http.retry_after import parse_retry_after
from ferry.transfer.retry import Next, Step, next_step, other_address_may_help

NOW = datetime(1994, 11, 6, 8, 49, 0, tzinfo=UTC)
CLASSES = st.sampled_from(list(ErrorClass))
TRIES = st.integers(1, 20)
SECONDS = st.floats(0, 1e6)
YEAR_S = 366 * 86_400.0


def error(cls: ErrorClass, retry_after_s: float | None = None) -> ObjectError:
    return ObjectError(cls, "it failed", retry_after_s=retry_after_s)


@given(st.integers(1, 10_000), st.floats(0.001, 600), st.floats(0.001, 3600), st.integers())
def test_backoff_stays_in_its_window(try_no: int, base_s: float, max_s: float, seed: int) -> None:
    """A delay is never negative, above the maximum or above the doubled base."""
    delay = backoff_s(try_no, base_s, max_s, random.Random(seed))
    assert 0 <= delay <= max_s
    assert delay <= base_s * 2.0 ** min(try_no - 1, 64)


def test_backoff_doubles_and_spreads() -> None:
    """The mean delay doubles with each try, and delays are spread from zero."""
    rng = random.Random(1)
    for try_no, window in ((1, 1.0), (2, 2.0), (3, 4.0), (9, 60.0)):
        waits = [backoff_s(try_no, 1.0, 60.0, rng) for _ in range(4000)]
        assert sum(waits) / len(waits) == pytest.approx(window / 2, rel=0.05)
        assert min(waits) < window * 0.01 < window * 0.99 < max(waits)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("9" * 5000, YEAR_S),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),  # the three forms of RFC 9110 section 5.6.7
        ("Sunday, 06-Nov-94 08:49:37 GMT", 37.0),
        ("Sun Nov  6 08:49:37 1994", 37.0),
        ("Sun, 06 Nov 1994 08:48:00 GMT", 0.0),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 37.0),
        ("Sat, 01 Jan 9999 00:00:00 GMT", YEAR_S),
        (None, None),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("١٢", None),
        ("1e3", None),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ("inf", None),
    ],
)
def test_retry_after_forms(value: str | None, expected: float | None) -> None:
    """Seconds and three date forms are parsed; a past date is 0, and anything else is ignored."""
    assert parse_retry_after(value, NOW) == expected


@given(st.text())
def test_retry_after_never_raises(value: str) -> None:
    """Any header value gives None or a limited number of seconds."""
    delay = parse_retry_after(value, NOW)
    assert delay is None or 0 <= delay <= YEAR_S


@given(st.integers(0, 30_000_000))
def test_retry_after_dates_round_trip(seconds: int) -> None:
    """A date gives the seconds until then."""
    then = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert parse_retry_after(then, NOW) == seconds


RETRY, END, STOP = Next.RETRY_AFTER, Next.REQUEUE_LAST, Next.GIVE_UP


@pytest.mark.parametrize(
    ("cls", "try_no", "last_done", "retry_after_s", "mismatches", "expected"),
    [
        (ErrorClass.DIGEST_MISMATCH, 1, False, None, 1, Step(RETRY, 2.0)),
        (ErrorClass.DIGEST_MISMATCH, 3, False, None, 1, Step(RETRY, 2.0)),
        (ErrorClass.DIGEST_MISMATCH, 4, True, None, 1, Step(RETRY, 2.0)),
        (ErrorClass.DIGEST_MISMATCH, 2, False, None, 2, Step(STOP)),
        (ErrorClass.NOT_FOUND, 1, False, None, 0, Step(STOP)),
        (ErrorClass.NOT_IMAGE, 1, False, 5.0, 0, Step(STOP)),
        (ErrorClass.FORBIDDEN, 1, False, None, 0, Step(STOP)),
        (ErrorClass.INTERNAL, 1, False, None, 0, Step(STOP)),
        (ErrorClass.TIMEOUT, 1, False, None, 0, Step(RETRY, 2.0)),
        (ErrorClass.TRUNCATED, 2, False, None, 0, Step(RETRY, 2.0)),
        (ErrorClass.SERVER_ERROR, 3, False, None, 0, Step(END)),
        (ErrorClass.SERVER_ERROR, 4, True, None, 0, Step(STOP)),
        (ErrorClass.RATE_LIMITED, 1, False, 10.0, 0, Step(RETRY, 10.0)),
        (ErrorClass.RATE_LIMITED, 1, False, 0.5, 0, Step(RETRY, 2.0)),
        (ErrorClass.RATE_LIMITED, 1, False, 60.0, 0, Step(RETRY, 60.0)),
        (ErrorClass.RATE_LIMITED, 1, False, 60.1, 0, Step(END)),
        (ErrorClass.RATE_LIMITED, 4, True, 600.0, 0, Step(STOP)),
    ],
)
def test_next_step_table(
    cls: ErrorClass, try_no: int, last_done: bool, retry_after_s: float | None, mismatches: int, expected: Step
) -> None:
    """The table of next_step() holds."""
    step = next_step(error(cls, retry_after_s), try_no, 3, last_done, 60.0, delay_s=2.0, mismatches=mismatches)
    assert step == expected
    assert step.next is RETRY or step.delay_s == 0.0


@pytest.mark.parametrize("cls", list(ErrorClass))
def test_whether_another_address_may_help(cls: ErrorClass) -> None:
    """The table of other_address_may_help(), and the step that follows; without another address nothing changes."""
    failed = error(cls)
    of_destination = (ErrorClass.EXISTS, ErrorClass.LOST_ATTRIBUTE, ErrorClass.INTERNAL)
    helps = AGAIN[cls] is not Again.NOW and cls not in of_destination
    assert other_address_may_help(failed) is helps
    given: dict[str, Any] = {"delay_s": 2.0, "mismatches": 2}
    alone = next_step(failed, 1, 3, False, 60.0, **given)
    assert next_step(failed, 1, 3, False, 60.0, **given, more_addresses=True) == (
        Step(Next.NEXT_ADDRESS) if helps else alone
    )
    failed.at_destination = True
    assert not other_address_may_help(failed)
    assert next_step(failed, 1, 3, False, 60.0, **given, more_addresses=True) == alone


def test_a_mismatch_is_fetched_again_first() -> None:
    """One mismatch may be a body that changed on its way; the second one moves on."""
    failed = error(ErrorClass.DIGEST_MISMATCH)
    steps = [next_step(failed, n, 3, False, 60.0, delay_s=2.0, mismatches=n, more_addresses=True).next for n in (1, 2)]
    assert steps == [RETRY, Next.NEXT_ADDRESS]


def test_a_backoff_of_nothing_is_nothing() -> None:
    """Without a Retry-After the delay is the backoff, even 0."""
    step = next_step(error(ErrorClass.TIMEOUT), 1, 3, False, 60.0, delay_s=0.0, mismatches=0)
    assert step == Step(RETRY, 0.0)


@given(CLASSES, TRIES, TRIES, st.booleans(), SECONDS, st.none() | SECONDS, SECONDS, st.integers(1, 5))
def test_next_step_holds_everywhere(
    cls: ErrorClass,
    try_no: int,
    attempts: int,
    last_done: bool,
    max_wait_s: float,
    retry_after_s: float | None,
    delay_s: float,
    mismatches: int,
) -> None:
    """A row is retried only if its class allows, within its tries, and not before Retry-After."""
    step = next_step(
        error(cls, retry_after_s), try_no, attempts, last_done, max_wait_s, delay_s=delay_s, mismatches=mismatches
    )
    if cls is ErrorClass.DIGEST_MISMATCH:
        assert step.next is (RETRY if mismatches == 1 else STOP)
        return
    if AGAIN[cls] is not Again.NOW or last_done:
        assert step == Step(STOP)
        return
    assert step.next is not STOP
    if step.next is RETRY:
        assert try_no < attempts
        assert step.delay_s >= delay_s
        assert (retry_after_s or 0) <= min(step.delay_s, max_wait_s)


@given(CLASSES, st.lists(st.none() | SECONDS, min_size=40, max_size=40), TRIES)
def test_every_object_comes_to_an_end(cls: ErrorClass, retry_afters: list[float | None], attempts: int) -> None:
    """A row that always fails is given up after its tries and a last one, or a second mismatch."""
    tries, last_done, mismatches = 0, False, 0
    while True:
        retry_after_s = retry_afters[tries]
        tries += 1
        mismatches += cls is ErrorClass.DIGEST_MISMATCH
        step = next_step(
            error(cls, retry_after_s), tries, attempts, last_done, 60.0, delay_s=0.0, mismatches=mismatches
        )
        if step.next is STOP:
            break
        last_done = last_done or step.next is END
    assert tries <= max(attempts + 1, 2)
