"""Which hosts are sent the job's secrets: those that the job names. A list may name any host, its author's own too."""

from __future__ import annotations

import re
from collections.abc import Iterable

EVERY_HOST = "*"
_ENTRY = re.compile(r"(?P<below>\*\.)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s/?#@:*\[\]{}]+)(?::(?P<port>\d{1,5}))?\Z")
_FIXED = re.compile(r"https?://(?P<place>[^/?#\\@{}]+)(?:[/?#]|\Z)", re.IGNORECASE)


def recipient(entry: str) -> str:
    """An entry of `source.headers_for`. Raises ValueError for what is no host."""
    if entry != EVERY_HOST and not _ENTRY.match(entry):
        raise ValueError(
            "an entry of headers_for is a host: `img.old.example`, `*.old.example` for all below one, with a port "
            "`img.old.example:8443`, or `*` for whatever host a row names"
        )
    return entry


def host_of_template(url: str | None) -> list[str]:
    """The host that all rows of a URL template have; none where a column stands in for it."""
    match = _FIXED.match(url or "")
    return [match["place"]] if match else []


class Recipients:
    """Judges sites by the entries; an entry without a port is for all ports of its host."""

    def __init__(self, entries: Iterable[str]) -> None:
        entries = list(entries)
        self._every = EVERY_HOST in entries
        self._hosts: set[tuple[str, int | None]] = set()
        self._below: list[tuple[str, int | None]] = []
        for match in filter(None, map(_ENTRY.match, entries)):
            port = int(match["port"]) if match["port"] else None
            host = _as_asked(match["host"])
            if match["below"]:
                self._below.append((f".{host}", port))
            else:
                self._hosts.add((host, port))

    def include(self, host: str, port: int) -> bool:
        host = host.removesuffix(".")
        return (
            self._every
            or (host, None) in self._hosts
            or (host, port) in self._hosts
            or any(host.endswith(end) and only in (None, port) for end, only in self._below)
        )


def _as_asked(host: str) -> str:
    """As hosts are asked for: lower case, IDNA."""
    host = host.lower().removesuffix(".")
    if host.isascii():
        return host
    from yarl import URL

    return URL.build(scheme="http", host=host).raw_host or host
