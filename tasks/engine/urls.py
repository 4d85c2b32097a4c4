"""What of an address may be shown."""

from __future__ import annotations

import hashlib


def redact(source: str) -> str:
    """An address without its secrets: scheme, host and path, and `?` with 8 hex digits for a query.

    The digits are the start of the query's SHA-256: two rows that differ only in their query stay
    apart, and nobody can sign with it. User info and fragment go entirely. What is no address (a bare
    ID, or an address without its scheme) loses the same of these.
    """
    place, _, query = source.partition("#")[0].partition("?")
    scheme, slashes, rest = place.partition("//")
    if slashes:
        host, slash, path = rest.partition("/")
        place = f"{scheme}//{host.rpartition('@')[2]}{slash}{path}"
    if query:
        place += "?" + hashlib.sha256(query.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return place
