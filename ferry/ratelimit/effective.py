"""The limits in force at a moment: those of the job, changed by its timetable and by `ferry limits`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from ferry.job import NO_LIMIT, Limits, limits_by_key, patterns_for

JOB = "the job"
_HOSTS = "hosts."
_WORDS = {
    "concurrency": "{:,} requests in flight", "requests_per_s": "{:,g} requests/s", "bytes_per_s": "{:,} bytes/s",
}  # fmt: skip
_NOUNS = {"concurrency": "requests in flight", "requests_per_s": "requests/s", "bytes_per_s": "bytes/s"}


@dataclass(frozen=True, slots=True)
class Override:
    """One limit that `ferry limits` has set."""

    key: str  # the part of `limits`: "", `destination` or `hosts.img.old.example`
    limit: str  # `concurrency`, `requests_per_s` or `bytes_per_s`
    value: int | float | str  # `off`: no limit
    until: float | None = None  # seconds since 1970; None: until it is reset

    def holds(self, now: float) -> bool:
        """Returns whether it has not ended."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Setting:
    """One limit in force; ``value`` is None for an unlimited part. ``source`` says who set it."""

    value: int | float | None
    source: str


Effective = dict[str, dict[str, Setting]]  # part of `limits`, as in Override.key -> name of the limit


def in_force(now: float, given: Limits, overrides: Sequence[Override]) -> Effective:
    """Returns the limits in force at ``now``, in seconds since 1970. Later ones replace earlier ones, limit by limit:

    1. the job's own
    2. the entries of its timetable that apply now, by the clock of `limits.timezone`, in their order
    3. ``overrides``, which may also loosen or remove a limit

    A night on which clocks change needs no rule: an hour that comes twice has its limits twice, an hour that is left
    out has none. What is set for a host also replaces the limit in entries that match it, such as the host with a port.
    """
    found: Effective = {
        key: {name: Setting(value, JOB) for name, value in values.items()}
        for key, values in limits_by_key(given).items()
    }
    local = datetime.fromtimestamp(now, ZoneInfo(given.timezone) if given.timezone else None)
    for entry in given.timetable:
        if entry.covers(local.weekday(), local.hour * 60 + local.minute):
            for key, values in limits_by_key(entry).items():
                _replace(found, key, values, f"the timetable ({entry.days} {entry.time})")
    for override in overrides:
        if override.holds(now):
            until = f" until {clock(override.until, now)}" if override.until is not None else ""
            _replace(found, override.key, {override.limit: override.value}, f"ferry limits{until}")
    return found


def limits_at(now: float, given: Limits, overrides: Sequence[Override]) -> Limits:
    """Returns :func:`in_force` as limits without a timetable."""
    return limits_of_settings(in_force(now, given, overrides))


def limits_of_settings(found: Effective) -> Limits:
    """Returns settings as limits without a timetable."""

    def values(key: str) -> dict[str, Any]:
        return {name: setting.value for name, setting in found[key].items()}

    hosts = {key.removeprefix(_HOSTS): values(key) for key in found if key.startswith(_HOSTS)}
    return Limits.model_validate({**values(""), "hosts": hosts, "destination": values("destination")})


def changes(before: Effective, after: Effective) -> Iterator[str]:
    """Yields a sentence for each limit whose value differs, such as `20 requests/s for img.old.example, by the job`."""
    for key in {**before, **after}:
        old, new = _settings_for(before, key), _settings_for(after, key)
        for name in _WORDS:
            was, now = old.get(name), new.get(name)
            if (was.value if was else None) != (now.value if now else None):
                yield sentence(key, name, now or Setting(None, was.source if was else ""), ended=now is None)


def sentence(key: str, name: str, setting: Setting, *, ended: bool = False) -> str:
    """Returns one limit in words: its value, for whom, and by whom. ``ended``: the limit was removed."""
    whom = {"": "all origin hosts together", "destination": "the destination"}.get(key, key.removeprefix(_HOSTS))
    if setting.value is None:
        source = "" if ended else f", by {setting.source}"
        return f"no limit on {_NOUNS[name]} for {whom}{source}"
    return f"{_WORDS[name].format(setting.value)} for {whom}, by {setting.source}"


def clock(at: float, now: float) -> str:
    """Returns a time by the local clock, with its date unless that is today's."""
    local, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now)
    return f"{local:%H:%M}" if local.date() == today.date() else f"{local:%Y-%m-%d %H:%M}"


def _patterns(key: str) -> list[str]:
    """Returns the keys of the entries that match the host of an entry, the most specific first; its own is first."""
    return [_HOSTS + name for name in patterns_for(key.removeprefix(_HOSTS))] if key.startswith(_HOSTS) else [key]


def _settings_for(found: Effective, key: str) -> Mapping[str, Setting]:
    """Returns the settings of the most specific entry for the host of ``key``."""
    return next((found[name] for name in _patterns(key) if name in found), {})


def _replace(found: Effective, key: str, values: Mapping[str, Any], source: str) -> None:
    """Replaces limits of an entry and of those that it covers. A new entry inherits from the one that it hides."""
    found.setdefault(key, dict(_settings_for(found, key)))
    new = {name: Setting(None if value == NO_LIMIT else value, source) for name, value in values.items()}
    for other in found:
        if key in _patterns(other):
            found[other] |= new
