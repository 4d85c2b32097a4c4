"""Validators of the demo origin: ETags and dates, correct ones and the faulty ones of real servers."""

from __future__ import annotations

from enum import StrEnum

LAST_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"


class Validators(StrEnum):
    """The validators in an origin's answers, and its use of conditional requests."""

    BOTH = "both"
    ETAG = "etag"
    WEAK = "weak"  # only a weak ETag
    DATE = "date"
    WEAK_DATE = "weak_date"  # a date, and a weak ETag derived from it
    NONE = "none"
    WEAK_NO_CONDITIONS = "weak_no_conditions"  # a weak ETag; conditions are ignored
    SERVERS = "servers"  # no date; each server behind the name has its own ETag
    SERVERS_DATE = "servers_date"  # as SERVERS, with a date
    NO_CONDITIONS = "no_conditions"  # an ETag and a date; conditions are ignored


def headers(kind: Validators, etag: str, modified: str, number: int) -> dict[str, str]:
    """Returns ETag and Last-Modified of an answer. ``number`` counts the requests; each comes from another server."""
    of_server = f'"{number}-{etag.strip(chr(34))}"'
    tag = {
        Validators.BOTH: etag,
        Validators.ETAG: etag,
        Validators.WEAK: f"W/{etag}",
        Validators.WEAK_DATE: f'W/"{modified}"',
        Validators.WEAK_NO_CONDITIONS: f"W/{etag}",
        Validators.NO_CONDITIONS: etag,
        Validators.SERVERS: of_server,
        Validators.SERVERS_DATE: of_server,
    }.get(kind)
    dated = kind in (
        Validators.BOTH, Validators.DATE, Validators.WEAK_DATE, Validators.SERVERS_DATE, Validators.NO_CONDITIONS
    )  # fmt: skip
    return {**({"ETag": tag} if tag else {}), **({"Last-Modified": modified} if dated else {})}


def unchanged(kind: Validators, asked: dict[str, str], sent: dict[str, str]) -> bool:
    """Returns whether to answer with 304 (RFC 9110 section 13.2.2). ``sent`` has the validators of a full answer."""
    if kind in (Validators.WEAK_NO_CONDITIONS, Validators.NO_CONDITIONS):
        return False
    if "if-none-match" in asked:
        known = {tag.strip().removeprefix("W/") for tag in asked["if-none-match"].split(",")}
        return sent.get("ETag", "").removeprefix("W/") in known
    return "Last-Modified" in sent and asked.get("if-modified-since") == sent["Last-Modified"]
