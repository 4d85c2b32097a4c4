"""The job's `limits` settings: fixed limits, and a timetable that changes them by the time of day."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ferry.core import short
from ferry.job.base import Model, Part
from ferry.job.validators import BytesPerSecond, Concurrency, PerSecond, host_pattern, limit, patterns_for

NO_LIMIT: Literal["off"] = "off"
LIMIT_NAMES = ("concurrency", "requests_per_s", "bytes_per_s")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])-([01]?[0-9]|2[0-4]):([0-5][0-9])\Z")


def changed_limit(value: Any, key: str) -> Any:
    """Validates a limit that replaces another one for a time: as :func:`limit`, or `off`, which YAML reads as False."""
    if value is False or (isinstance(value, str) and value.strip().lower() in (NO_LIMIT, "none")):
        return NO_LIMIT
    return limit(value, key)


def minutes_of(time: str) -> tuple[int, int]:
    """Returns the first minute of a span such as `08:00-18:00`, and the minute that it ends before."""
    found = _TIME.match(time)
    if found is None or (found[3] == "24" and found[4] != "00"):
        raise ValueError(f"`{short(time)}` is not a span of time; write `08:00-18:00`, or `22:00-06:00` for a night")
    hour, minute, end_hour, end_minute = map(int, found.groups())
    return hour * 60 + minute, end_hour * 60 + end_minute


def days_of(days: str) -> set[int]:
    """Returns the days of a text such as `mon-fri` or `sat,sun`; Monday is 0."""
    found: set[int] = set()
    for part in days.lower().replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise ValueError(f"`{short(days)}` are not days; write `mon-fri`, `sat,sun` or `mon,wed-fri`")
        start, end = DAYS.index(first), DAYS.index(last or first)
        found.update(day % 7 for day in range(start, end + 1 if end >= start else end + 8))
    return found


def _time(value: str) -> str:
    minutes_of(value)
    return value


def _days(value: str) -> str:
    days_of(value)
    return value


def _timezone(value: str | None) -> str | None:
    if value is not None:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(f"`{short(value)}` is not a time zone; write a name such as `Europe/Berlin`") from None
    return value


class HostLimits(Model):
    """Limits for the destination or for one host. Adaptive limits stay below them."""

    concurrency: Concurrency = None
    """Maximum requests in flight, 1 to 4096."""
    requests_per_s: PerSecond = None
    """Maximum requests per second, evenly spread; `0.5` is one every two seconds."""
    bytes_per_s: BytesPerSecond = None
    """Maximum bytes per second: a number, or `10MB`, `10MiB`, `1GB`."""


class ChangedLimits(Model):
    """Limits that replace others for a time. `off` means no limit; a key that is left out changes nothing."""

    concurrency: Annotated[int | Literal["off"] | None, BeforeValidator(partial(changed_limit, key="concurrency"))] = (
        None
    )
    """Maximum requests in flight, or `off`."""
    requests_per_s: Annotated[
        float | Literal["off"] | None, BeforeValidator(partial(changed_limit, key="requests_per_s"))
    ] = None
    """Maximum requests per second, or `off`."""
    bytes_per_s: Annotated[int | str | None, BeforeValidator(partial(changed_limit, key="bytes_per_s"))] = None
    """Maximum bytes per second: a number, `10MB`, or `off`."""


class TimetableEntry(ChangedLimits):
    """Limits for hours of the day or days of the week: `{time: 08:00-18:00, days: mon-fri, requests_per_s: 20}`. Outside them the other limits apply. Of two entries that set the same limit at the same time, the later one counts."""

    time: Annotated[str, AfterValidator(_time)] = "00:00-24:00"
    """A span by the clock on the wall: `08:00-18:00`. `22:00-06:00` belongs to the day on which it begins."""
    days: Annotated[str, AfterValidator(_days)] = "mon-sun"
    """Days of the week: `mon-fri`, `sat,sun`."""
    hosts: dict[Annotated[str, AfterValidator(host_pattern)], ChangedLimits] = {}
    """Limits for single origin hosts, as in `limits.hosts`: `{img.old.example: {requests_per_s: 5}}`."""
    destination: Part[ChangedLimits] = ChangedLimits()
    """Limits for the destination."""

    @model_validator(mode="after")
    def _sets_a_limit(self) -> TimetableEntry:
        if not any(limits_by_key(self).values()):
            raise ValueError(
                "sets no limit; add `requests_per_s`, `bytes_per_s`, `concurrency`, `hosts` or `destination`"
            )
        return self

    def covers(self, day: int, minute: int) -> bool:
        """Returns whether the entry applies at a minute of a day of the week, by local time; Monday is 0.

        | entry | applies on |
        |---|---|
        | `08:00-18:00`, `mon-fri` | Monday to Friday, from 08:00 to 17:59 |
        | `22:00-06:00`, `fri` | Friday from 22:00, Saturday until 05:59 |
        | `18:00-18:00`, `mon` | Monday from 18:00, Tuesday until 17:59 |
        """
        start, end = minutes_of(self.time)
        days = days_of(self.days)
        if start < end:
            return day in days and start <= minute < end
        return (day in days and minute >= start) or ((day - 1) % 7 in days and minute < end)


class Limits(HostLimits):
    """Fixed limits; adaptive limits stay below them (docs/explanation/concurrency.md). `concurrency`, `requests_per_s` and `bytes_per_s` here apply to all origin hosts of the job together. Each entry of `hosts` has the keys of `limits.destination`: `hosts: {img.old.example: {requests_per_s: 50}}`. `ferry limits` changes limits while a job runs."""

    hosts: dict[Annotated[str, AfterValidator(host_pattern)], HostLimits] = {}
    """Limits for single origin hosts: `img.old.example`, `img.old.example:8080`, `*.old.example`, or the name of a bucket, at Azure of the account. Only the most specific entry applies."""
    destination: Part[HostLimits] = HostLimits()
    """Limits for the destination."""
    timetable: list[TimetableEntry] = []
    """Limits that replace those above for hours of the day or days of the week, such as office hours."""
    timezone: Annotated[str | None, AfterValidator(_timezone)] = None
    """The time zone of the timetable: `Europe/Berlin`. Default: that of the machine where the job runs."""
    shared: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    """A name for limits that several jobs share, such as that of the provider. All live runs whose jobs give the same name, on one Prefect server, divide their limits: each takes an equal part of those of its own job. So give these jobs the same limits."""

    @model_validator(mode="after")
    def _shares_a_limit(self) -> Limits:
        if self.shared and not self.timetable and not any(limits_by_key(self).values()):
            raise ValueError(
                "shared: this job has no limit that others could share; add `requests_per_s`, `bytes_per_s` or `concurrency`"
            )
        return self

    def of_host(self, host: str) -> tuple[str, HostLimits]:
        """Returns the key and limits of the most specific entry for a host or bucket, ("", no limits) if none matches."""
        key = next((key for key in patterns_for(host) if key in self.hosts), "") if self.hosts else ""
        return key, self.hosts.get(key, HostLimits())


def limits_by_key(limits: Limits | TimetableEntry) -> Mapping[str, dict[str, Any]]:
    """Returns the values that are set, by name, for each part of `limits`: "", `destination`, `hosts.img.old.example`."""
    parts: dict[str, HostLimits | ChangedLimits] = {"": limits, "destination": limits.destination}
    parts |= {f"hosts.{host}": of_host for host, of_host in limits.hosts.items()}
    return {
        key: {name: value for name in LIMIT_NAMES if (value := getattr(part, name)) is not None}
        for key, part in parts.items()
    }
