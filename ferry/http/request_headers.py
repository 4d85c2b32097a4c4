"""Headers of requests to origins: those of the job, and the conditions of a recheck."""

from __future__ import annotations

import re
from collections.abc import Mapping

from multidict import CIMultiDict

from ferry.core import UserError

_ETAG = re.compile(r'(?:W/)?"[!#-~]*"')
_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")

# Headers that would change the meaning of a GET, or the use of the connection.
_NOT_FOR_JOBS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "if-range",
        "keep-alive",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


def request_headers(headers: Mapping[str, str], user_agent: str) -> CIMultiDict[str]:
    """Return the headers of a request. The job's User-Agent takes precedence; Accept-Encoding is always Ferry's."""
    made: CIMultiDict[str] = CIMultiDict({"User-Agent": user_agent, "Accept": "*/*"})
    for name, value in headers.items():
        sendable_header(name, value, "source.headers")
        made[name] = value
    made["Accept-Encoding"] = "identity"
    return made


def sendable_header(name: str, value: str, setting: str) -> None:
    """Raise UserError for a header that would break or change requests. ``setting`` is the job's key for it."""
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
        raise UserError(f"{setting}: `{name}` cannot be sent: its name or value contains characters that HTTP forbids")
    if name.lower() in _NOT_FOR_JOBS:
        raise UserError(f"{setting}: `{name}` cannot be set, because it changes what a request means. Remove it")


def conditions(etag: str | None, last_modified: str | None) -> bytes:
    """Return the header lines for these validators, without malformed ones (RFC 9110 sections 5.6.7, 8.8.3)."""
    lines = b""
    if etag is not None and _ETAG.fullmatch(etag):
        lines += b"If-None-Match: %s\r\n" % etag.encode()
    if last_modified is not None and _DATE.fullmatch(last_modified):
        lines += b"If-Modified-Since: %s\r\n" % last_modified.encode()
    return lines


def strong_etag(headers: CIMultiDict[str]) -> str | None:
    """Return the ETag if it says which bytes these are: a strong one of a body that is not encoded (RFC 9110 8.8.1)."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') and _ETAG.fullmatch(etag) and "Content-Encoding" not in headers else None


def rest_conditions(start: int, etag: str) -> bytes:
    """Return the header lines that ask for the bytes from ``start`` on if this is the ETag (RFC 9110 13.1.1, 14.2)."""
    return b"Range: bytes=%d-\r\nIf-Match: %s\r\n" % (start, etag.encode())


def header_block(headers: CIMultiDict[str]) -> bytes:
    """Return the header lines with the empty line after them."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{lines}\r\n".encode("utf-8", "surrogateescape")
