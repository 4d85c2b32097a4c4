"""Object information as a store returns it, and the meaning of its ETags and checksums."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

# Either case is accepted, since Alibaba Cloud's OSS writes MD5s in capitals.
_SINGLE_PART_ETAG = re.compile(r'"?([0-9A-Fa-f]{32})"?\Z')
_MULTIPART_ETAG = re.compile(r'"?([0-9A-Fa-f]{32}-\d+)"?\Z')


class ObjectInfo(NamedTuple):
    """An object as a listing or a HEAD returns it. ``key`` is relative to the store's prefix."""

    key: str
    size: int
    etag: str | None
    last_modified: datetime | None
    md5: str | None = None  # in hex digits, where the store has one apart from the ETag
    version: str | None = None  # what Provider.get takes as ``if_version``
    tier: str | None = None  # storage class or access tier, by the provider's name
    crc32c: str | None = None  # in base64, where the store has one: objects without an MD5 have it

    @property
    def known_md5(self) -> str | None:
        """The MD5 that the store gives for the object, or that its ETag looks like."""
        return self.md5 or md5_of_etag(self.etag)


@dataclass(frozen=True, slots=True)
class Sent:
    """A store's response to an upload: its ETag, and its digests in hex digits if the store returned any."""

    etag: str | None
    sha256: str | None = None
    exists: bool = False  # nothing was written: the key exists, and `create` was set
    sent_twice: bool = False  # the first response was lost, so that request may have created what exists
    in_parts: bool = False  # it was a multipart upload
    parts_etag: str | None = None  # multipart: the composite ETag computed from the parts sent, if known
    created_twice: bool = False  # multipart: a lost response may have created another upload, whose ID is unknown
    md5: str | None = None  # of the bytes that the store received, apart from the ETag; for parts, if each was compared
    version: str | None = None  # as in ObjectInfo
    lost: tuple[str, ...] = ()  # names of attributes that the store cannot hold, and that were not sent


def md5_of_etag(etag: str | None) -> str | None:
    """Returns the MD5 that an ETag looks like, or None. Under SSE-KMS it looks like an MD5 but is another number."""
    match = _SINGLE_PART_ETAG.match(etag or "")
    return match.group(1).lower() if match else None


def composite_etag(etag: str | None) -> str | None:
    """Returns the ETag of a multipart upload without quotes and in lower case, or None for any other ETag."""
    match = _MULTIPART_ETAG.match(etag or "")
    return match.group(1).lower() if match else None


def same_etag(one: str, other: str) -> bool:
    """Returns whether two ETags are equal, ignoring quotes, a `W/` prefix, and the case of MD5s.

    A proxy may turn a strong ETag into a weak one.
    """
    one, other = (etag.removeprefix("W/").strip('"') for etag in (one, other))
    md5 = md5_of_etag(one)
    return one == other or (md5 is not None and md5 == md5_of_etag(other))


def in_base64(digest: str) -> str:
    """Returns a digest in hex digits as providers write it: `x-amz-checksum-sha256`, Content-MD5, md5Hash."""
    return base64.b64encode(bytes.fromhex(digest)).decode()


def sha256_of(checksum: str | None) -> str | None:
    """Returns the hex digits of a checksum header, or None unless it is the SHA-256 of a whole object."""
    try:
        digest = base64.b64decode(checksum or "", validate=True)
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == 32 else None


def composite_of(etags: Sequence[str]) -> str | None:
    """Returns the composite ETag for parts with these ETags, or None if one of them is not an MD5."""
    digests = [md5_of_etag(etag) for etag in etags]
    parts = b"".join(bytes.fromhex(digest) for digest in digests if digest is not None)
    if None in digests:
        return None
    return f"{hashlib.md5(parts, usedforsecurity=False).hexdigest()}-{len(digests)}"


def multipart_etag(path: Path, part_bytes: int) -> str:
    """Returns a file's composite ETag: the MD5 of its parts' MD5s, and their number (S3 API, object integrity)."""
    parts = []
    with path.open("rb") as file:
        while piece := file.read(part_bytes):
            parts.append(hashlib.md5(piece, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def last_modified(headers: Mapping[str, str]) -> datetime | None:
    """Returns the Last-Modified date, or None if it is missing or invalid."""
    try:
        return parsedate_to_datetime(headers["Last-Modified"])
    except (KeyError, ValueError, TypeError):
        return None
