"""Attributes of a blob as headers, and back, under the names that all providers share (ferry/storage/provider.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ferry.core import HEADERS, HOLDS, TAGS, TIER, WORDS, from_ascii, in_ascii, one_line

_HOLDS = HOLDS["az"]
_TO_AZURE = {name: f"x-ms-blob-{name.lower()}" for name in HEADERS if name in _HOLDS.names} | {
    TIER: "x-ms-access-tier",
    TAGS: "x-ms-tags",
}
_FROM_AZURE = {name.lower(): name for name in HEADERS if name in _HOLDS.names}
_META = "x-ms-meta-"
_IDENTIFIER = re.compile(_HOLDS.metadata or "")


def attribute_headers(attributes: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns attributes as the headers of a write, and the names of those that Azure cannot hold.

    Metadata names are C# identifiers ("Naming and referencing containers, blobs, and metadata"), so that `ean-code` is
    one of the latter. Only metadata may be in words of RFC 2047.
    """
    headers, lost = {}, []
    for name, value in attributes.items():
        header = _TO_AZURE.get(name)
        if header is None:
            if name in HEADERS or name in WORDS or not _IDENTIFIER.fullmatch(name):
                lost.append(name)
                continue
            header = _META + name.lower()
        headers[header] = one_line(value) if name in _TO_AZURE else in_ascii(value)
    return headers, tuple(lost)


def attributes_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the attributes in a response's headers. A tier that the account gives by default is not one of them."""
    found = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in _FROM_AZURE:
            found[_FROM_AZURE[lower]] = value
        elif lower.startswith(_META):
            found[lower[len(_META) :]] = from_ascii(value)
    if "x-ms-access-tier" in headers and headers.get("x-ms-access-tier-inferred") != "true":
        found[TIER] = headers["x-ms-access-tier"]
    return found
