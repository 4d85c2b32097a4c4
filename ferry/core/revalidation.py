"""Nightly deltas: whether a settled row's object may have changed, and the cheapest honest way to find out. Pure.

The list's author says so (an ETag, a digest, a date), or the origin is asked; what only guesses (a size that is the
same) is believed for `delta.revalidate_after`, no longer.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Literal, NamedTuple

from ferry.core.records import Checked, Confirmed

Claim = Literal["nothing", "same", "other"]
Validators = Literal["none", "weak", "racy", "strong"]

_HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_UNIX = re.compile(r"\d{9,10}(\.\d+)?|\d{12,13}")  # seconds, or milliseconds
_GRANULARITIES_US = tuple(round(seconds * 1_000_000) for seconds in (86_400, 3_600, 60, 1, 0.1))
_MIN_GRANULARITY_US = (
    10_000  # however many digits a file's time has: the kernel's clock for files ticks every 4 to 10 ms
)
_WESTERNMOST = timedelta(hours=12)  # a date without a zone may be of UTC-12


class Revalidate(StrEnum):
    """How Ferry checks whether the object of a row has changed (RFC 9110 section 13, RFC 9111 section 4.3)."""

    SKIP = "skip"  # no request: the manifest says that nothing changed
    CONDITIONAL_GET = "conditional_get"  # with If-None-Match, If-Modified-Since
    HEAD = "head"  # and a GET where the HEAD shows a change
    HEAD_SIZE = "head_size"  # as HEAD, but the ETag changes by itself and proves nothing
    GET = "get"  # the digest decides


class KnownCopy(NamedTuple):
    """What the ledger knows of a row's object that stands at the destination and is to be looked at again."""

    revalidate: Revalidate
    key: str
    size: int | None
    md5: str | None
    sha256: str | None
    content_type: str | None
    etag: str | None  # of the source
    last_modified: str | None
    dest_etag: str | None
    bytes_read_at: datetime | None
    confirmed: Confirmed | None = None


def date_over_at(date: str) -> float:
    """When the time that ``date`` names was over (Unix seconds): bytes read later show what it names; infinity for
    what cannot be read as a date. Bytes read earlier may have been followed by others of the same date.

    Zeros at the end count as digits that were not given: a list of days often has midnights.

    | date | over at |
    |---|---|
    | 2026-11-29T10:30:05.123456Z (a file's time, a listing's) | 10 ms later |
    | 2026-11-29T10:30:05Z, Sun, 29 Nov 2026 10:30:05 GMT (RFC 9110 section 5.6.7), 1796034605 | 1 s later |
    | 2026-11-29 10:30:00Z, 2026-11-29T10:30Z | 1 min later |
    | 2026-11-29T00:00:00Z | 1 day later |
    | 2026-11-29T10:30:05 | 12 h and 1 s later than in UTC: it may be the time of any zone |
    | 2026-11-29 | 12 h and 1 day later than in UTC |
    | 29.11.2026, v17 | never |
    """
    moment = _moment(date.strip())
    if moment is None:
        return math.inf
    since_midnight = timedelta(hours=moment.hour, minutes=moment.minute, seconds=moment.second)
    passed_us = since_midnight // timedelta(microseconds=1) + moment.microsecond
    granularity_us = next(
        (granularity for granularity in _GRANULARITIES_US if passed_us % granularity == 0), _MIN_GRANULARITY_US
    )
    zone_s = 0.0
    if moment.tzinfo is None:
        moment, zone_s = moment.replace(tzinfo=UTC), _WESTERNMOST.total_seconds()
    return moment.timestamp() + granularity_us / 1_000_000 + zone_s


def _moment(date: str) -> datetime | None:
    """A date as ISO 8601 writes it, or HTTP, or Unix."""
    try:
        if http := _HTTP_DATE.fullmatch(date):
            day, month, year, *time = http.groups()
            hour, minute, second = map(int, time)
            return datetime(int(year), _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC)
        if _UNIX.fullmatch(date):
            return datetime.fromtimestamp(float(date) / (1 if len(date.partition(".")[0]) < 12 else 1000), UTC)
        return datetime.fromisoformat(date)
    except ValueError:
        return None


def how_to_revalidate(
    *, claim: Claim, proof: bool, validators: Validators, web: bool, checked: Checked | None, old: bool
) -> Revalidate:
    """How a settled row is looked at in a delta.

    ``claim``: what the list says of the object against what it said when last looked at. ``proof``: by an ETag,
    a digest, or a date that was over when the object was last known (:func:`date_over_at`), and not by its size alone.
    ``validators``: what the origin gave; a weak ETag alone is weak, and a date that was not over when the bytes were
    read is racy where there is no strong ETag. ``web``: it is asked over HTTP, and not a bucket or a directory.
    ``checked``: how it was found the same last time. ``old``: its bytes were read longer ago than
    `delta.revalidate_after`.

    | list | proof | validators | asked | last time | bytes read | look |
    |---|---|---|---|---|---|---|
    | other | any | any | any | any | any | read |
    | same | yes | any | any | any | any | not |
    | same, nothing | no | racy | any | any | any | read |
    | same, nothing | no | strong | over HTTP | new, body, condition | any | if |
    | same, nothing | no | weak | over HTTP | likewise | recently | if |
    | same, nothing | no | strong | in a store | any but size | any | head |
    | same, nothing | no | any other | any | size | recently | size |
    | same, nothing | no | any other | any | any other | recently | head |
    | same, nothing | no | any other | any | any | long ago | read |

    "Any other" are a source without validators, and one that does not honour them: the whole body came in answer to a
    condition (body_again), or its ETag changed by itself (size). Nobody is to send their bodies every night.
    """
    if claim == "other":
        return Revalidate.GET
    if claim == "same" and proof:
        return Revalidate.SKIP
    if validators == "racy":
        return Revalidate.GET
    ignores_conditions = checked is Checked.SIZE or (web and checked in (Checked.BODY_AGAIN, Checked.HEAD))
    if old and (ignores_conditions or validators != "strong"):
        return Revalidate.GET
    if web and validators != "none" and not ignores_conditions:
        return Revalidate.CONDITIONAL_GET
    return Revalidate.HEAD_SIZE if checked is Checked.SIZE else Revalidate.HEAD


def head_matches(known: KnownCopy, size: int | None, etag: str | None, last_modified: str | None) -> bool:
    """Does a HEAD's answer tell of the object that is known?

    | sizes | ETags, where they are looked at | dates | the same |
    |---|---|---|---|
    | both given, different | any | any | no |
    | else | both given, equal (weakly) | any | yes |
    | else | both given, different | any | no: it is read, and where the bytes are the same its ETag changes by itself |
    | else | not both given | both given, equal | yes |
    | else | not both given | both given, different | no |
    | both given, equal | not both given | not both given | yes: nothing more is told |
    | not both given | not both given | not both given | no |
    """
    if size is not None and known.size is not None and size != known.size:
        return False
    if etag and known.etag and known.revalidate is not Revalidate.HEAD_SIZE:
        return opaque(etag) == opaque(known.etag)
    if last_modified and known.last_modified:
        return last_modified == known.last_modified
    return size is not None and size == known.size


def opaque(etag: str | None) -> str:
    """An ETag for the weak comparison (RFC 9110 section 8.8.3.2)."""
    return (etag or "").removeprefix("W/")
