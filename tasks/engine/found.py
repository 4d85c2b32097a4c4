"""What a store shows of an object, and what its ETag tells of its bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_SINGLE_PART_ETAG = re.compile(r'"?([0-9a-f]{32})"?\Z')
_MULTIPART_ETAG = re.compile(r'"?([0-9a-f]{32}-\d+)"?\Z')


@dataclass(frozen=True, slots=True)
class Found:
    """An object as a listing or a HEAD shows it. ``key`` is relative to the store's prefix."""

    key: str
    size: int
    etag: str | None
    last_modified: datetime | None


def md5_of_etag(etag: str | None) -> str | None:
    """The MD5 that a single-part S3 ETag is, or None (multipart, KMS and file ETags are no MD5)."""
    match = _SINGLE_PART_ETAG.match(etag or "")
    return match.group(1) if match else None


def composite_etag(etag: str | None) -> str | None:
    """The ETag of an upload in parts, without its quotes; None for any other."""
    match = _MULTIPART_ETAG.match(etag or "")
    return match.group(1) if match else None


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
