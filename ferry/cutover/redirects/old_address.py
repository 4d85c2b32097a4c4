"""Old addresses as a web server sees them: host, decoded path, query."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from yarl import URL

_ADDRESS = re.compile(
    r"https?://(?:[^/?#\\]*@)?(\[[^\[\]/?#]*\]|[^\[\]/?#:@]+)(?::[0-9]*)?([^?#]*)(?:\?([^#]*))?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_CANONICAL = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+/?")  # most paths; the rest takes ten times as long
_TO_ENCODE = re.compile(r"[^\x21-\x7e]+")


class Asked(NamedTuple):
    """What a server knows of the address that a visitor asks for."""

    host: str  # lower case, without port
    path: str  # percent-encoded again: all but unreserved characters (RFC 3986, section 2.3) and `/`
    query: str  # byte for byte, but for characters that no client may send


def asked(url: str, merge_slashes: bool) -> Asked | None:
    """Returns what a server knows of a request for ``url``, None if browsers would not send one.

    All spellings of one path are equal: `%41` and `A`, `%c3%a4`, `%C3%A4` and `ä`, `/x/../a` and `/a`; with
    ``merge_slashes`` also `//a` and `/a`. Queries have no such rule, so `?v=%41` and `?v=A` differ.
    """
    match = _ADDRESS.fullmatch(url)
    if match is None:
        return None
    host, path, query = ascii_host(match[1]), match[2], match[3]
    if not _HOST.fullmatch(host):
        return None
    if not _CANONICAL.fullmatch(path):
        path = quote(_resolved(unquote_to_bytes(path or "/"), merge_slashes), safe="/")
    return Asked(host, path, _TO_ENCODE.sub(lambda found: quote(found[0]), query or ""))


def _resolved(path: bytes, merge_slashes: bool) -> bytes:
    """Returns the path without dot segments (RFC 3986, section 5.2.4)."""
    if b"/." not in path and b"//" not in path:
        return path
    kept: list[bytes] = []
    for segment in path.split(b"/")[1:]:
        if segment == b"..":
            del kept[-1:]
        elif segment != b"." and (segment or not merge_slashes):
            kept.append(segment)
    closing = merge_slashes or not path.endswith(b"/")
    return b"/" + b"/".join(kept) + (b"/" if kept and closing and re.search(rb"/\.{0,2}\Z", path) else b"")


@lru_cache(4096)
def ascii_host(host: str) -> str:
    """Returns a host as browsers send it: lower case, IDNA-encoded, without the last dot."""
    if host.isascii():
        return host.lower().removesuffix(".")
    try:
        return URL.build(scheme="http", host=host.lower()).raw_host or host
    except ValueError:
        return host
