"""Rules for which sites receive the job's secret headers: only those that the job lists, since a manifest may name any.

A site is a scheme, a host and a port. Plain HTTP shows a secret to every network on the way. Another port of a host may
be another user's server. Both count only if the job lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OPEN_HEADERS = frozenset({"accept", "accept-language", "referer", "user-agent"})

_ENTRY = re.compile(
    r"(?:(?P<scheme>https?)://)?(?:(?P<every>\*)|(?P<below>\*\.)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s/?#@:*\[\]{}]+)"
    r"(?::(?P<port>\d{1,5}))?)\Z"
)
_FIXED = re.compile(r"(?P<site>https?://[^/?#\\@{}]+)(?:[/?#]|\Z)", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


def recipient(entry: str, key: str = "headers_for") -> str:
    """Return the entry of a list of hosts unchanged; ``key`` names the list. Raises ValueError if it is malformed."""
    if not _ENTRY.match(entry):
        raise ValueError(
            f"an entry of {key} is a host (`img.old.example`), all subdomains of a host (`*.old.example`), a host "
            "with a port (`img.old.example:8443`), or `*` for every host that a row names. It covers https only; to "
            "allow plain HTTP also, write `http://img.old.example`"
        )
    return entry


def site_of_template(url: str | None) -> list[str]:
    """Return the site that all rows of a URL template share, or an empty list if it depends on a column."""
    match = _FIXED.match(url or "")
    return [match["site"]] if match else []


class Recipients:
    """The sites that the entries of `source.headers_for` allow.

    | entry | sites |
    |---|---|
    | `h`, `https://h` | https, port 443 |
    | `h:8443`, `https://h:8443` | https, that port |
    | `http://h` | http, port 80; https, port 443 |
    | `http://h:8080` | http, that port |
    | `*.h`, with a scheme or a port as above | the same for each subdomain |
    | `*` | https, every host and port |
    | `http://*` | every site |
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._every: set[str] = set()
        self._sites: set[tuple[str, str, int]] = set()
        self._below: list[tuple[str, str, int]] = []
        for match in filter(None, map(_ENTRY.match, entries)):
            scheme = (match["scheme"] or "https").lower()
            schemes = {scheme, "https"} if not match["port"] else {scheme}
            if match["every"]:
                self._every |= schemes
                continue
            host = _normalized(match["host"])
            for one in schemes:
                port = int(match["port"] or _PORTS[one])
                if match["below"]:
                    self._below.append((one, f".{host}", port))
                else:
                    self._sites.add((one, host, port))

    def include(self, scheme: str, host: str, port: int) -> bool:
        """Return whether the site may receive the job's secret headers."""
        host = host.removesuffix(".")
        return (
            scheme in self._every
            or (scheme, host, port) in self._sites
            or any(host.endswith(end) and (scheme, port) == (one, only) for one, end, only in self._below)
        )


def _normalized(host: str) -> str:
    """Return the host in the form of a request: lower case, IDNA."""
    host = host.lower().removesuffix(".")
    if host.isascii():
        return host
    from yarl import URL

    return URL.build(scheme="http", host=host).raw_host or host
