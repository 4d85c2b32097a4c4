"""Tests of the timetable in `limits`: which hours and days an entry covers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ferry.job.limits import DAYS, Limits, TimetableEntry, days_of
from ferry.job.model import Job
from tests.support.helpers import make_job


def entry(**given: Any) -> TimetableEntry:
    return TimetableEntry.model_validate({"requests_per_s": 20, **given})


@pytest.mark.parametrize(
    ("given", "day", "time", "covered"),
    [
        ({"time": "08:00-18:00", "days": "mon-fri"}, "mon", "08:00", True),
        ({"time": "08:00-18:00", "days": "mon-fri"}, "mon", "07:59", False),
        ({"time": "08:00-18:00", "days": "mon-fri"}, "fri", "17:59", True),
        ({"time": "08:00-18:00", "days": "mon-fri"}, "fri", "18:00", False),
        ({"time": "08:00-18:00", "days": "mon-fri"}, "sat", "12:00", False),
        ({"time": "22:00-06:00", "days": "fri"}, "fri", "22:00", True),
        ({"time": "22:00-06:00", "days": "fri"}, "sat", "05:59", True),
        ({"time": "22:00-06:00", "days": "fri"}, "sat", "06:00", False),
        ({"time": "22:00-06:00", "days": "fri"}, "fri", "05:59", False),
        ({"time": "22:00-06:00", "days": "sun"}, "mon", "03:00", True),
        ({"time": "18:00-18:00", "days": "mon"}, "mon", "18:00", True),
        ({"time": "18:00-18:00", "days": "mon"}, "tue", "17:59", True),
        ({"time": "18:00-18:00", "days": "mon"}, "tue", "18:00", False),
        ({"time": "9:30-24:00"}, "wed", "23:59", True),
        ({"days": "sat,sun"}, "sun", "00:00", True),
        ({"days": "sat,sun"}, "mon", "00:00", False),
        ({}, "thu", "04:00", True),
    ],
)
def test_what_an_entry_covers(given: dict[str, Any], day: str, time: str, covered: bool) -> None:
    """The table of TimetableEntry.covers, with the first and the last minute of each span."""
    hour, minute = map(int, time.split(":"))
    assert entry(**given).covers(DAYS.index(day), hour * 60 + minute) is covered


@pytest.mark.parametrize(
    ("text", "expected"),
    [("mon", "mon"), ("mon-fri", "mon tue wed thu fri"), ("Sat, Sun", "sat sun"), ("fri-mon", "mon fri sat sun"),
     ("mon,wed-fri", "mon wed thu fri"), ("mon-sun", "mon tue wed thu fri sat sun")],
)  # fmt: skip
def test_days(text: str, expected: str) -> None:
    """Days are single ones and spans, which may include the end of a week."""
    assert " ".join(DAYS[day] for day in sorted(days_of(text))) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"time": "8-18"}, "write `08:00-18:00`"),
        ({"time": "08:00"}, "is not a span of time"),
        ({"time": "24:00-08:00"}, "is not a span of time"),
        ({"time": "08:00-24:30"}, "is not a span of time"),
        ({"time": "08:60-18:00"}, "is not a span of time"),
        ({"days": "monday"}, "are not days; write `mon-fri`"),
        ({"days": ""}, "are not days"),
        ({"requests_per_s": 0}, "allows no request"),
        ({"requests_per_s": None}, "sets no limit"),
        ({"requests_per_s": None, "hosts": {"img.example": {}}}, "sets no limit"),
        ({"requests": 5}, "did you mean `requests_per_s`?"),
        ({"from": "08:00"}, "unknown key `from`"),
        ({"hosts": {"https://img.example/": {"concurrency": 1}}}, "is not a host"),
    ],
)
def test_entries_that_are_refused(given: dict[str, Any], words: str) -> None:
    """Each message says what to write instead."""
    with pytest.raises(ValidationError) as refused:
        entry(**given)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["Middle/Earth", "", "../etc/passwd", "/etc/passwd", "Europe"])
def test_a_time_zone_that_does_not_exist(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone; write a name such as `Europe/Berlin`"):
        Limits(timezone=name)


def test_a_timetable_as_yaml_has_it() -> None:
    """Spans need no quotes, and YAML's `off` removes a limit. A job survives the way to a child process."""
    text = """
    timezone: Europe/Berlin
    timetable:
      - {time: 08:00-18:00, days: mon-fri, requests_per_s: 20, bytes_per_s: 10MB, destination: {concurrency: off}}
      - {time: 18:00-08:00, hosts: {IMG.example: {bytes_per_s: none, concurrency: 4}}}
    """
    limits = make_job(limits=yaml.safe_load(text)).limits
    day, night = limits.timetable
    assert (day.time, day.requests_per_s, day.bytes_per_s) == ("08:00-18:00", 20.0, 10_000_000)
    assert (day.concurrency, day.destination.concurrency) == (None, "off")
    assert (night.hosts["img.example"].bytes_per_s, night.hosts["img.example"].concurrency) == ("off", 4)
    assert Limits.model_validate(limits.model_dump(mode="json")) == limits


def test_limits_change_no_digest() -> None:
    """A changed timetable neither plans rows again nor transfers a chunk again."""
    plain = make_job()
    timed = Job.model_validate({**plain.model_dump(), "limits": {"timetable": [{"requests_per_s": 5}]}})
    assert timed.settings_digest() == plain.settings_digest()
    assert timed.fingerprint() == plain.fingerprint()
