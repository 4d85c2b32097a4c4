"""Parser of the Retry-After header (RFC 9110 section 10.2.3)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_S = 366 * 86400.0
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds from ``now`` (aware) that a Retry-After header asks for, or None if it is malformed.

    The value is a number of seconds or an HTTP-date, which has three forms, all in GMT (RFC 9110 sections 10.2.3 and
    5.6.7). A past date gives 0. Fractions are accepted, because some servers send them. The result is at most a year.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        then = parsedate_to_datetime(text)
        if then.tzinfo is None:
            then = then.replace(tzinfo=UTC)
        delay = (then - now).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):  # email.utils does not document what it raises
        return None
    return min(max(delay, 0.0), MAX_RETRY_AFTER_S)
