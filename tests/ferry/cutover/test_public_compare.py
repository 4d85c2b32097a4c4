"""What a visitor gets beside what the ledger says: the truth tables of public_compare."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from demo.images import make_image
from ferry.core import ErrorClass, ObjectError
from ferry.cutover.public_compare import (
    Answer,
    Expected,
    What,
    differences,
    how_bytes_differ,
    how_caching_differs,
    of_error,
)

JPEG, SMALL, WEBP = make_image("jpeg", 1, 400, 300), make_image("jpeg", 1, 40, 30), make_image("webp", 1)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in, visitor 17</title></head></html>"


def expected(body: bytes = JPEG, **given: Any) -> Expected:
    values = {
        "size": len(body), "md5": None, "sha256": hashlib.sha256(body).hexdigest(), "content_type": "image/jpeg",
        "cache_control": None, **given,
    }  # fmt: skip
    return Expected(**values)


def answer(body: bytes = JPEG, **given: Any) -> Answer:
    values = {
        "status": 200, "size": len(body), "digest": hashlib.sha256(body).hexdigest(), "content_type": "image/jpeg",
        "cache_control": None, "head": body, **given,
    }  # fmt: skip
    return Answer(**values)


OTHER = JPEG[:-1] + b"\0"


@pytest.mark.parametrize(
    ("ledger", "found", "what"),
    [
        (expected(), answer(), []),
        (expected(), answer(status=203), [What.OTHER_STATUS]),
        (expected(), answer(OTHER), [What.OTHER_BYTES]),
        (expected(sha256=None), answer(OTHER), []),  # by size
        (expected(sha256=None, md5="a"), answer(digest="a"), []),
        (expected(sha256=None, md5="a"), answer(digest="b"), [What.OTHER_BYTES]),
        (expected(), answer(WEBP, content_type="image/webp"), [What.OTHER_BYTES]),
        (expected(), answer(WEBP), [What.OTHER_BYTES]),
        (expected(), answer(WEBP, content_type="text/html"), [What.OTHER_BYTES, What.OTHER_TYPE]),
        (expected(), answer(content_type="text/plain"), [What.OTHER_TYPE]),
        (expected(), answer(content_type=None), [What.OTHER_TYPE]),
        (expected(), answer(content_type="IMAGE/JPEG; charset=binary"), []),
        (expected(content_type=None), answer(content_type="text/plain"), []),
        (expected(cache_control="max-age=60"), answer(), [What.OTHER_CACHING]),
        (expected(cache_control="max-age=60"), answer(cache_control="max-age=60, public"), []),
        (expected(cache_control="max-age=60"), answer(OTHER), [What.OTHER_BYTES, What.OTHER_CACHING]),
    ],
)
def test_differences(ledger: Expected, found: Answer, what: list[What]) -> None:
    assert [difference.what for difference in differences(ledger, found)] == what


def test_what_a_difference_says() -> None:
    """Both sides in figures, and where the answer came from after a redirect, without its query."""
    (found,) = differences(expected(), answer(SMALL, redirected_to="https://cdn.example/x.jpg?token=secret"))
    assert found.how == "a smaller JPEG image than the ledger's"
    assert found.expected == f"{len(JPEG)} bytes {hashlib.sha256(JPEG).hexdigest()}"
    assert found.found.startswith(f"{len(SMALL)} bytes {hashlib.sha256(SMALL).hexdigest()}, after a redirect to ")
    assert "secret" not in found.found


@pytest.mark.parametrize(
    ("type_", "body", "how"),
    [
        ("image/jpeg", b"", "an empty body"),
        ("image/jpeg", WEBP, "a WebP image where the ledger has a JPEG image"),
        ("image/webp", make_image("svg", 1), "an SVG image where the ledger has a WebP image"),
        ("image/jpeg", PAGE, "an HTML page where the ledger has a JPEG image"),
        ("image/jpeg", b"\x1f\x8b\x08\0\0\0\0\0", "gzip-compressed data where the ledger has a JPEG image"),
        ("image/jpeg", SMALL, "a smaller JPEG image than the ledger's"),
        ("image/jpeg", JPEG + b"x", "a larger JPEG image than the ledger's"),
        ("image/jpeg", OTHER, "a JPEG image of the same size with other bytes"),
        ("image/jpeg", bytes(range(128, 200)), "a body of no known kind where the ledger has a JPEG image"),
        ("application/x-own", JPEG, "a JPEG image where the ledger has an application/x-own"),
        (None, JPEG, "a JPEG image"),
        (None, b"\xfe" * (len(JPEG) + 1), "a larger body than the ledger's"),
    ],
)
def test_how_bytes_differ(type_: str | None, body: bytes, how: str) -> None:
    """By kinds and sizes, in words that are the same for many objects."""
    assert how_bytes_differ(expected(content_type=type_), answer(body)) == how


@pytest.mark.parametrize(
    ("wanted", "given", "how"),
    [
        ("public, max-age=60", "max-age=60, PUBLIC, stale-if-error=9", ""),
        ("public, max-age=60", None, "no Cache-Control"),
        ("public, max-age=60", "public, max-age=5", "max-age=5 for max-age=60"),
        ("public, max-age=60", "public, max-age=60, max-age=5", "max-age=60 and 5 for max-age=60"),
        ("public, max-age=60", "public, max-age=60, Max-Age=60", ""),
        ("public, max-age=60", "max-age=60", "lacks public"),
        ("public, max-age=60", "public, max-age=60, no-cache", "adds no-cache"),
        ("no-cache", "no-cache", ""),
        ('private="set-cookie, x", max-age=1', 'max-age="1",private="set-cookie, x"', ""),
    ],
)
def test_how_caching_differs(wanted: str, given: str | None, how: str) -> None:
    """A CDN may add what does not forbid caching."""
    assert how_caching_differs(wanted, given) == how


@pytest.mark.parametrize(
    ("error", "status", "what", "how"),
    [
        (ErrorClass.NOT_FOUND, 404, What.NOT_THERE, "404"),
        (ErrorClass.GONE, 410, What.NOT_THERE, "410"),
        (ErrorClass.FORBIDDEN, 403, What.FORBIDDEN, "403"),
        (ErrorClass.TOO_LARGE, None, What.OTHER_BYTES, "a larger body than max_bytes"),
        (ErrorClass.REDIRECT_LOOP, 302, What.OTHER_STATUS, "a redirect that leads nowhere"),
        (ErrorClass.BAD_URL, 302, What.OTHER_STATUS, "a redirect that leads nowhere"),
        (ErrorClass.BLOCKED_ADDRESS, 302, What.NOT_ANSWERED, "private address, not allowed"),
        (ErrorClass.RATE_LIMITED, 429, What.OTHER_STATUS, "429"),
        (ErrorClass.SERVER_ERROR, 503, What.OTHER_STATUS, "503"),
        (ErrorClass.CLIENT_ERROR, 206, What.OTHER_STATUS, "206"),
        (ErrorClass.TIMEOUT, None, What.NOT_ANSWERED, "no complete response in time"),
        (ErrorClass.TRUNCATED, None, What.NOT_ANSWERED, "truncated body"),
        (ErrorClass.DNS, None, What.NOT_ANSWERED, "host name does not resolve"),
    ],
)
def test_of_error(error: ErrorClass, status: int | None, what: What, how: str) -> None:
    found = of_error(ObjectError(error, "the origin did not answer in time", status_code=status))
    assert (found.what, found.how) == (what, how)
    assert found.found == "the server did not answer in time"
