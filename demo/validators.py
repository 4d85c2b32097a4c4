"""What origins give to ask by: ETags and dates, good ones and those that real servers have."""

from __future__ import annotations

from enum import StrEnum

LAST_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"


class Validators(StrEnum):
    """How an origin tells one version of an object from another."""

    BOTH = "both"
    ETAG = "etag"
    WEAK = "weak"  # a weak ETag alone
    DATE = "date"
    WEAK_DATE = "weak_date"  # a date, and a weak ETag made of it
    NONE = "none"
    DEAF = "deaf"  # a weak ETag, and the whole body in answer to any condition
    SERVERS = "servers"  # each of the servers behind the name has an ETag of its own, and no date
    SERVERS_DATE = "servers_date"  # likewise, with a date
    NO_CONDITIONS = "no_conditions"  # an ETag and a date, and the whole body in answer to any condition


def headers(kind: Validators, etag: str, modified: str, number: int) -> dict[str, str]:
    """ETag and Last-Modified of an answer. ``number``: the requests so far; each is another server's."""
    of_server = f'"{number}-{etag.strip(chr(34))}"'
    tag = {
        Validators.BOTH: etag,
        Validators.ETAG: etag,
        Validators.WEAK: f"W/{etag}",
        Validators.WEAK_DATE: f'W/"{modified}"',
        Validators.DEAF: f"W/{etag}",
        Validators.NO_CONDITIONS: etag,
        Validators.SERVERS: of_server,
        Validators.SERVERS_DATE: of_server,
    }.get(kind)
    dated = kind in (
        Validators.BOTH, Validators.DATE, Validators.WEAK_DATE, Validators.SERVERS_DATE, Validators.NO_CONDITIONS
    )  # fmt: skip
    return {**({"ETag": tag} if tag else {}), **({"Last-Modified": modified} if dated else {})}


def unchanged(kind: Validators, asked: dict[str, str], sent: dict[str, str]) -> bool:
    """Whether a request's conditions are answered with 304 (RFC 9110 section 13.2.2); ``sent``: what would be."""
    if kind in (Validators.DEAF, Validators.NO_CONDITIONS):
        return False
    if "if-none-match" in asked:
        known = {tag.strip().removeprefix("W/") for tag in asked["if-none-match"].split(",")}
        return sent.get("ETag", "").removeprefix("W/") in known
    return "Last-Modified" in sent and asked.get("if-modified-since") == sent["Last-Modified"]
