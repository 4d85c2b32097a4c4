"""What a store shows of an object, and what its answers tell of the bytes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

# In either case: Alibaba Cloud's OSS writes its MD5s in capitals.
_SINGLE_PART_ETAG = re.compile(r'"?([0-9A-Fa-f]{32})"?\Z')
_MULTIPART_ETAG = re.compile(r'"?([0-9A-Fa-f]{32}-\d+)"?\Z')


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing or a HEAD shows it. ``key`` is relative to the store's prefix."""

    key: str
    size: int
    etag: str | None
    last_modified: datetime | None


@dataclass(frozen=True, slots=True)
class Sent:
    """A store's answer to an upload: its ETag, and the SHA-256 in hex digits where it answered with one."""

    etag: str | None
    sha256: str | None = None
    exists: bool = False  # the key was there, and `create` was asked for
    sent_twice: bool = False  # what exists may be what the first request put there: its answer was lost
    in_parts: bool = False
    parts_etag: str | None = None  # after parts: the composite ETag that the sent bytes make, where it is known already
    begun_twice: bool = False  # after parts: another upload may have been begun, whose ID is not known


def md5_of_etag(etag: str | None) -> str | None:
    """The MD5 that a single-part S3 ETag looks like, or None. With SSE-KMS it looks like one and is another number."""
    match = _SINGLE_PART_ETAG.match(etag or "")
    return match.group(1).lower() if match else None


def composite_etag(etag: str | None) -> str | None:
    """The ETag of an upload in parts, without its quotes; None for any other."""
    match = _MULTIPART_ETAG.match(etag or "")
    return match.group(1).lower() if match else None


def same_etag(one: str, other: str) -> bool:
    """Are these the same ETag, quoted, weak (a proxy may make it so) or bare? MD5s are the same in either case."""
    one, other = (etag.removeprefix("W/").strip('"') for etag in (one, other))
    md5 = md5_of_etag(one)
    return one == other or (md5 is not None and md5 == md5_of_etag(other))


def checksum_of(sha256: str) -> str:
    """A SHA-256 in hex digits as `x-amz-checksum-sha256` has it (S3 API: checking object integrity)."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def sha256_of(checksum: str | None) -> str | None:
    """The reverse of :func:`checksum_of`; None for what is not the SHA-256 of a whole object."""
    try:
        digest = base64.b64decode(checksum or "", validate=True)
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == 32 else None


def composite_of(etags: Sequence[str]) -> str | None:
    """The ETag of an upload whose parts have these; None where one of them is not an MD5."""
    digests = [md5_of_etag(etag) for etag in etags]
    parts = b"".join(bytes.fromhex(digest) for digest in digests if digest is not None)
    if None in digests:
        return None
    return f"{hashlib.md5(parts, usedforsecurity=False).hexdigest()}-{len(digests)}"


def multipart_etag(path: Path, part_bytes: int) -> str:
    """S3's composite ETag: MD5 over the parts' MD5s, and their number (S3 API, object integrity)."""
    parts = []
    with path.open("rb") as file:
        while piece := file.read(part_bytes):
            parts.append(hashlib.md5(piece, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"
