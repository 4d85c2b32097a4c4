"""Tests of the limits in force: job, timetable and overrides, also on the nights on which clocks change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from ferry.job.limits import Limits
from ferry.ratelimit.effective import Override, changes, in_force, limits_at

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 12, 1, 12, 0, tzinfo=BERLIN).timestamp()  # a Tuesday


def limits(**given: Any) -> Limits:
    return Limits.model_validate(given)


def timed(*entries: dict[str, Any], **given: Any) -> Limits:
    return limits(timezone="Europe/Berlin", timetable=list(entries), **given)


def test_later_ones_replace_earlier_ones_limit_by_limit() -> None:
    """Job, timetable, overrides; what none of them names stays. The result has no timetable."""
    given = timed(
        {"time": "08:00-18:00", "requests_per_s": 20, "bytes_per_s": 10**6}, requests_per_s=100, concurrency=8
    )
    assert limits_at(NOON, limits(requests_per_s=100), []) == limits(requests_per_s=100)
    assert limits_at(NOON, given, []) == limits(requests_per_s=20, bytes_per_s=10**6, concurrency=8)
    assert limits_at(NOON + 6 * 3600, given, []) == limits(requests_per_s=100, concurrency=8)
    more = [Override("", "requests_per_s", 500), Override("destination", "concurrency", 2)]
    assert limits_at(NOON, given, more) == limits(
        requests_per_s=500, bytes_per_s=10**6, concurrency=8, destination={"concurrency": 2}
    )


def test_the_later_of_two_entries_counts() -> None:
    """Entries that apply at the same time add up. Where both set a limit, the later one counts."""
    day = {"time": "08:00-18:00", "requests_per_s": 20, "concurrency": 4}
    given = timed(day, {"time": "12:00-13:00", "requests_per_s": "off"}, requests_per_s=50)
    assert limits_at(NOON, given, []) == limits(concurrency=4)
    assert limits_at(NOON + 3600, given, []) == limits(requests_per_s=20, concurrency=4)


def test_an_override_ends() -> None:
    """It holds before its end, and not at it. `off` removes a limit."""
    given, override = limits(requests_per_s=50), Override("", "requests_per_s", "off", NOON + 60)
    assert limits_at(NOON + 59.9, given, [override]) == limits()
    assert limits_at(NOON + 60, given, [override]) == given


@pytest.mark.parametrize(
    ("key", "host", "expected"),
    [
        ("hosts.img.old.example", "img.old.example", (20, 8)),  # inherits what it hides
        ("hosts.img.old.example", "img.old.example:8080", (20, 2)),
        ("hosts.img.old.example", "cdn.old.example", (None, 8)),
        ("hosts.*.old.example", "cdn.old.example", (20, 8)),
        ("hosts.*.old.example", "img.old.example:8080", (20, 2)),
        ("hosts.*.example", "img.old.example:8080", (20, 2)),
        ("hosts.img.old.example:8080", "img.old.example", (None, 8)),
        ("hosts.other.test", "img.old.example", (None, 8)),
        ("hosts.other.test", "other.test", (20, None)),
    ],
)
def test_an_override_of_a_host(key: str, host: str, expected: tuple[int | None, int | None]) -> None:
    """It applies to all hosts that match, whichever entry of the job is the most specific, and leaves other limits."""
    given = limits(hosts={"*.old.example": {"concurrency": 8}, "img.old.example:8080": {"concurrency": 2}})
    found = limits_at(NOON, given, [Override(key, "requests_per_s", 20)]).of_host(host)[1]
    assert (found.requests_per_s, found.concurrency) == expected


def hours_with(given: Limits, start: datetime, hours: int) -> float:
    """For how many hours from ``start`` on the limits are not those of the job, by evaluating each minute."""
    base, first = limits_at(0, given.model_copy(update={"timetable": []}), []), start.timestamp()
    return sum(limits_at(first + 60 * minute, given, []) != base for minute in range(hours * 60)) / 60


@pytest.mark.parametrize(
    ("span", "march", "october"),
    [
        ("01:00-04:00", 2, 4),  # 23 and 25 hours: 02:00 is left out, or comes twice
        ("02:00-03:00", 0, 2),
        ("02:30-03:30", 0.5, 1.5),
        ("22:00-06:00", 2 + 5, 2 + 7),
        ("08:00-18:00", 10, 10),
        ("00:00-24:00", 23, 25),
    ],
)
def test_nights_on_which_clocks_change(span: str, march: float, october: float) -> None:
    """An entry applies while the clock on the wall shows one of its minutes."""
    given = timed({"time": span, "requests_per_s": 5})
    for start, hours, expected in (
        (datetime(2026, 3, 29, tzinfo=BERLIN), 23, march),
        (datetime(2026, 10, 25, tzinfo=BERLIN), 25, october),
    ):
        assert (start + timedelta(days=1)).timestamp() - start.timestamp() == hours * 3600
        assert hours_with(given, start, hours) == expected
    ordinary = datetime(2026, 6, 10, tzinfo=BERLIN)
    assert hours_with(given, ordinary, 24) == pytest.approx(24 if span == "00:00-24:00" else _length(span))


def _length(span: str) -> float:
    start, end = (int(part[:2]) + int(part[3:]) / 60 for part in span.split("-"))
    return (end - start) % 24


@pytest.fixture
def local_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("local_zone")
def test_without_a_time_zone_the_machine_s_counts() -> None:
    """12:00 in Berlin is 20:00 in Tokyo."""
    entry = {"time": "19:00-21:00", "requests_per_s": 5}
    assert limits_at(NOON, limits(timetable=[entry]), []).requests_per_s == 5
    assert limits_at(NOON, timed(entry), []).requests_per_s is None


@pytest.mark.usefixtures("local_zone")
def test_sentences() -> None:
    """Each change is a sentence with value, host and source; what an entry only inherits is none."""
    given = limits(requests_per_s=50, hosts={"*.old.example": {"concurrency": 8}}, destination={"bytes_per_s": "10MB"})
    before = in_force(NOON, given, [])
    after = in_force(
        NOON, given,
        [Override("hosts.img.old.example", "requests_per_s", 20, NOON + 3600), Override("", "requests_per_s", "off"),
         Override("destination", "bytes_per_s", 2_000_000, NOON + 86_400)],
    )  # fmt: skip
    assert list(changes(before, after)) == [
        "no limit on requests/s for all origin hosts together, by ferry limits",
        "2,000,000 bytes/s for the destination, by ferry limits until 2026-12-02 20:00",
        "20 requests/s for img.old.example, by ferry limits until 21:00",
    ]
    assert list(changes(after, before)) == [
        "50 requests/s for all origin hosts together, by the job",
        "10,000,000 bytes/s for the destination, by the job",
        "no limit on requests/s for img.old.example",
    ]
    assert list(changes(after, after)) == []
    at_noon = in_force(NOON, limits(timetable=[{"time": "19:00-21:00", "days": "tue", "concurrency": 3}]), [])
    assert list(changes(in_force(NOON, limits(), []), at_noon)) == [
        "3 requests in flight for all origin hosts together, by the timetable (tue 19:00-21:00)"
    ]
