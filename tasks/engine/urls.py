"""What of an address may be shown."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit


def redact(source: str) -> str:
    """An address without its secrets: scheme, host and path, and `?` with 8 hex digits for a query.

    The digits are the start of the query's SHA-256: two rows that differ only in their query stay
    apart, and nobody can sign with it. User info and fragment go entirely. A source that is no
    address (a bare ID) is returned as it is.
    """
    if "://" not in source:
        return source
    try:
        parts = urlsplit(source)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return source.partition("?")[0].partition("#")[0].rpartition("@")[2]
    shown = f"{parts.scheme}://{host}{parts.path}"
    if parts.query:
        shown += "?" + hashlib.sha256(parts.query.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return shown
