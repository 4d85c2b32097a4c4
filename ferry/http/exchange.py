"""The settings of requests to origins, and what their responses become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from multidict import CIMultiDict

from ferry.core import (
    Body,
)
from ferry.http.auth import Auth
from ferry.http.network import Network

USER_AGENT = "ferry/0.1 (moves image libraries; the job's owner can name a contact with source.user_agent)"


@dataclass(frozen=True, slots=True)
class OriginOptions:
    """Settings for requests to origins.

    ``headers`` are the job's, with their secrets resolved. All of them go only to the site (scheme, host and port) of
    the row's URL, if ``recipients`` include it. Other sites receive only Accept, Accept-Language, Referer and
    User-Agent. After a redirect to another site, no later redirect restores the other headers.

    ``total_s`` limits the time for an object with its redirects. ``connections`` limits the connections of one process.
    ``auth`` goes to its own recipients in the same way, unless the URL has user info.
    """

    headers: Mapping[str, str]
    recipients: Sequence[str]
    connect_s: float
    read_s: float
    total_s: float
    max_bytes: int
    user_agent: str = USER_AGENT
    connections: int = 512
    auth: Auth | None = None
    network: Network = field(default_factory=Network)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete object with the metadata of its response. The caller discards ``body`` in the end."""

    body: Body
    status: int
    content_type: str | None
    etag: str | None
    last_modified: str | None
    requests: int
    length_known: bool  # by Content-Length or by chunks; else the body ended with its connection, wherever that was
    attributes: dict[str, str]  # Cache-Control and Content-Disposition
    version: str | None = None  # a strong ETag of these bytes as they are, by which a part of them can be asked for


@dataclass(frozen=True, slots=True)
class Rest:
    """The bytes from ``start`` on of an object of ``size`` bytes that still has the ``version`` that was read before.

    ``part_bytes`` is the size of the parts whose digests are needed, of which ``start`` is a multiple.
    """

    start: int
    size: int
    version: str  # a strong ETag, or what a bucket has for it
    part_bytes: int


@dataclass(frozen=True, slots=True)
class NotModified:
    """The metadata of a response without the object (304 or HEAD). ``size`` is None if unknown, as after a 304."""

    size: int | None
    etag: str | None
    last_modified: str | None
    requests: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The metadata of a response whose body was written. ``url`` is its URL, after that many ``redirects``."""

    url: str
    status: int
    headers: CIMultiDict[str]
    redirects: int = 0


class Writable(Protocol):
    """Takes a body piece by piece."""

    def write(self, piece: bytes, /) -> object: ...
