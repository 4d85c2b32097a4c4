"""Pure rules of delta runs: whether the object of a done row may have changed, and the cheapest reliable check.

Either the manifest shows it (ETag, digest, date), or Ferry sends a request to the source. Weak evidence, such as an
equal size, is trusted only for `delta.revalidate_after`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Literal, NamedTuple

from ferry.core.records import Checked, Confirmed
from ferry.core.redaction import redact

Claim = Literal["nothing", "same", "other"]
Validators = Literal["none", "weak", "racy", "strong"]

_HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_UNIX = re.compile(r"\d{9,10}(\.\d+)?|\d{12,13}")  # seconds or milliseconds since 1970
_GRANULARITIES_US = tuple(round(seconds * 1_000_000) for seconds in (86_400, 3_600, 60, 1, 0.1))
_MIN_GRANULARITY_US = 10_000  # even for more digits: the clock that stamps files ticks every 4 to 10 ms
_WESTERNMOST = timedelta(hours=12)  # a date without a zone may be local time in UTC-12


class Revalidate(StrEnum):
    """How Ferry checks whether the object of a row has changed (RFC 9110 section 13, RFC 9111 section 4.3)."""

    SKIP = "skip"  # no request: the manifest shows that the object is unchanged
    CONDITIONAL_GET = "conditional_get"  # with If-None-Match, If-Modified-Since
    HEAD = "head"  # followed by a GET if the HEAD response shows a change
    HEAD_SIZE = "head_size"  # as HEAD, but the ETag is ignored because it changes by itself
    GET = "get"  # the digest of the body decides


class KnownCopy(NamedTuple):
    """The ledger's facts about a copy at the destination that is to be rechecked."""

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
    address: str | None = None  # which of a row's addresses gave the bytes, redacted; None for its source
    attributes_sha256: str | None = None
    lost_attributes: Sequence[str] | None = None

    def at(self, address: str, *, is_source: bool) -> KnownCopy:
        """Return what is known for a recheck at one of the row's addresses.

        ETag, date and size are evidence only at the address that gave the bytes (RFC 9110 section 8.8.1). At any other
        address the bytes decide.
        """
        if is_source if self.address is None else redact(address) == self.address:
            return self
        return self._replace(revalidate=Revalidate.GET, etag=None, last_modified=None)


def date_over_at(date: str) -> float:
    """Return when the interval that ``date`` names ends, in Unix seconds; infinity if ``date`` cannot be parsed.

    Bytes read after that end belong to the version of this date. Before that end, the object may still change without
    a new date.

    Zeros at the end count as missing digits, because a manifest of days often writes midnights:

    | date | ends |
    |---|---|
    | 2026-11-29T10:30:05.123456Z (of a file or a listing) | 10 ms later |
    | 2026-11-29T10:30:05Z, Sun, 29 Nov 2026 10:30:05 GMT (RFC 9110 section 5.6.7), 1796034605 | 1 s later |
    | 2026-11-29 10:30:00Z, 2026-11-29T10:30Z | 1 min later |
    | 2026-11-29T00:00:00Z | 1 day later |
    | 2026-11-29T10:30:05 | 12 h and 1 s later than in UTC, because the zone is unknown |
    | 2026-11-29 | 12 h and 1 day later than in UTC |
    | 29.11.2026, v17 | never |
    """
    moment = moment_of(date.strip())
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


def moment_of(date: str) -> datetime | None:
    """Return the time that an ISO 8601, HTTP or Unix date names, or None."""
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
    """Return how a delta run rechecks the object of a done row.

    ``claim``: what the manifest says of the object, compared with what it said at the last check. ``proof``: the claim
    rests on an ETag, a digest, or a date that had ended at the last check (:func:`date_over_at`). The size alone is no
    proof.

    ``validators``: what the source gave. A weak ETag alone is "weak". Without a strong ETag, a date that had not ended
    when the bytes were read is "racy". ``web``: the source is an HTTP origin, not a bucket or a directory.

    ``checked``: how the object was last found to be unchanged. ``old``: its bytes were read longer ago than
    `delta.revalidate_after`.

    | manifest | proof | validators | source | last check | bytes read | recheck |
    |---|---|---|---|---|---|---|
    | other | any | any | any | any | any | GET |
    | same | yes | any | any | any | any | SKIP |
    | same, nothing | no | racy | any | any | any | GET |
    | same, nothing | no | strong | HTTP | none, body, condition | any | CONDITIONAL_GET |
    | same, nothing | no | weak | HTTP | none, body, condition | recently | CONDITIONAL_GET |
    | same, nothing | no | strong | store | any but size | any | HEAD |
    | same, nothing | no | any other | any | size | recently | HEAD_SIZE |
    | same, nothing | no | any other | any | any other | recently | HEAD |
    | same, nothing | no | any other | any | any | long ago | GET |

    "Any other" covers sources without validators and sources that ignore conditions. A source ignores them if it
    answered a condition with the whole body (body_again), or if its ETag changes by itself (size). Without these rows,
    such a source would send its bodies in each delta run.
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
    """Return whether a HEAD response describes the known object.

    | sizes | ETags, unless ignored (HEAD_SIZE) | dates | same |
    |---|---|---|---|
    | both given, different | any | any | no |
    | else | both given, equal (weak comparison) | any | yes |
    | else | both given, different | any | no: a GET follows; if the bytes are equal, the ETag changes by itself |
    | else | not both given | both given, equal | yes |
    | else | not both given | both given, different | no |
    | both given, equal | not both given | not both given | yes: there is no other evidence |
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
    """Return an ETag without its weakness prefix, for the weak comparison (RFC 9110 section 8.8.3.2)."""
    return (etag or "").removeprefix("W/")
