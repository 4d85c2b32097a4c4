"""Confirmation of uploads: by a digest in the store's response, by reading back, or by size (docs/decisions/0032)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import NamedTuple, Protocol

from ferry.core import PART_BYTES, Body, Confirmed, ErrorClass, ObjectError
from ferry.storage.object_info import ObjectInfo, Sent, composite_etag, md5_of_etag, multipart_etag

READ_FIRST = 8  # objects that are read back before a size may confirm others
READ_ONE_IN = 20  # of the others, one in so many is read back


class Comparison(Enum):
    """Result of comparing the digests in a store's response with those of the body sent."""

    EQUAL = auto()
    DIFFERENT = auto()
    MAYBE_DIFFERENT = auto()  # the ETag looks like another MD5: other bytes, or the same bytes under SSE-KMS
    UNKNOWN = auto()  # the response has no digest


class Confirmation(NamedTuple):
    """How an object was confirmed, and its ETag (None if the store sends none)."""

    method: Confirmed
    etag: str | None


def compare_digests(sent: Sent, md5: str, sha256: str, parts_etag: str | None = None) -> Comparison:
    """Compares a store's response with the digests of the body sent.

    ``parts_etag`` is the composite ETag computed from the parts' MD5s. The first matching row decides:

    | the response has | if equal | if different |
    |---|---|---|
    | a SHA-256 | equal | different |
    | an MD5 apart from the ETag (Google, Azure) | equal | different |
    | for a multipart upload: a composite ETag | equal | different |
    | for a multipart upload: any other ETag, or none | different | different |
    | an ETag that looks like an MD5 | equal | maybe different |
    | any other ETag, or none | unknown | unknown |

    Under SSE-KMS a composite ETag is not made of MD5s. So a multipart upload whose ETag does not match counts as
    different, and its bytes are read back.
    """
    if sent.sha256 is not None:
        return Comparison.EQUAL if sent.sha256 == sha256 else Comparison.DIFFERENT
    if sent.md5 is not None:
        return Comparison.EQUAL if sent.md5 == md5 else Comparison.DIFFERENT
    if sent.in_parts:
        matches = parts_etag is not None and composite_etag(sent.etag) == parts_etag
        return Comparison.EQUAL if matches else Comparison.DIFFERENT
    etag = md5_of_etag(sent.etag)
    if etag is None:
        return Comparison.UNKNOWN
    return Comparison.EQUAL if etag == md5 else Comparison.MAYBE_DIFFERENT


class ReadBackPolicy:
    """Decides which objects of one store are read back, from what the store has shown in this run."""

    def __init__(self) -> None:
        self.etags_are_md5 = False  # an ETag was the MD5 of its object, so an ETag like another MD5 is suspicious
        self.sends_etags = False  # uploads return an ETag, so a response without one may come from a proxy
        self.sends_md5s = False  # the same for an MD5 apart from the ETag
        self.matches = 0  # objects that were read back and had the right bytes
        self.mismatch_found = False  # an object that was read back had other bytes

    def must_read_back(self, comparison: Comparison, key: str) -> bool:
        """Returns whether to read this object back. All others are confirmed by their size alone.

        The first matching row decides:

        | comparison | ETags are MD5s | objects read back so far | read back |
        |---|---|---|---|
        | different | any | any | yes |
        | maybe different | yes | any | yes |
        | any other | any | fewer than 8 | yes |
        | any other | any | one had other bytes | yes |
        | any other | any | 8 or more, all equal | one in 20, chosen by a hash of the key |
        """
        if comparison is Comparison.DIFFERENT or (comparison is Comparison.MAYBE_DIFFERENT and self.etags_are_md5):
            return True
        return self.mismatch_found or self.matches < READ_FIRST or zlib.crc32(key.encode()) % READ_ONE_IN == 0


class ReadableStore(Protocol):
    """The two methods of a store that confirmation needs."""

    async def head(self, key: str) -> ObjectInfo | None: ...
    async def digest(self, key: str, *, max_bytes: int, moved: Callable[[], object]) -> tuple[str, ObjectInfo]: ...


async def confirm(
    store: ReadableStore, policy: ReadBackPolicy, key: str, body: Body, sent: Sent, *, read_back: bool = False
) -> Confirmation:
    """Confirms an upload by a digest, by reading it back, or by its size. Raises ObjectError (UPLOAD_UNCONFIRMED).

    With ``read_back`` it is read back in any case.
    """
    parts_etag = None
    if sent.in_parts and sent.md5 is None:
        parts_etag = sent.parts_etag
        if parts_etag is None and body.path is not None:
            parts_etag = await asyncio.to_thread(multipart_etag, body.path, PART_BYTES)
        if not sent.etag:  # Ceph's RGW returns the ETag to HEAD only
            sent = replace(sent, etag=(await check_size(store, key, body.size)).etag)
    policy.sends_etags = policy.sends_etags or bool(sent.etag)
    policy.sends_md5s = policy.sends_md5s or sent.md5 is not None
    comparison = compare_digests(sent, body.md5, body.sha256, parts_etag)
    if comparison is Comparison.UNKNOWN and (policy.sends_md5s or (policy.sends_etags and not sent.etag)):
        comparison = Comparison.DIFFERENT
    if comparison is Comparison.EQUAL and not read_back:
        policy.etags_are_md5 = policy.etags_are_md5 or md5_of_etag(sent.etag) == body.md5
        return Confirmation(Confirmed.DIGEST, sent.etag)
    if read_back or policy.must_read_back(comparison, key):
        found = await _read_back(store, policy, key, body)
        return Confirmation(Confirmed.READ_BACK, sent.etag or found.etag)
    found = await check_size(store, key, body.size)
    return Confirmation(Confirmed.SIZE, sent.etag or found.etag)


async def check_size(store: ReadableStore, key: str, size: int) -> ObjectInfo:
    """Returns the object if it has ``size`` bytes. Raises ObjectError (UPLOAD_UNCONFIRMED) otherwise."""
    found = await store.head(key)
    if found is None:
        raise _unconfirmed("the destination does not have the object after the upload")
    if found.size != size:
        raise _unconfirmed(f"the destination has {found.size:,} bytes where {size:,} were sent")
    return found


async def _read_back(store: ReadableStore, policy: ReadBackPolicy, key: str, body: Body) -> ObjectInfo:
    """Returns the object if its bytes equal the body's. Raises ObjectError (UPLOAD_UNCONFIRMED) otherwise."""
    try:
        sha256, found = await store.digest(key, max_bytes=body.size, moved=body.on_progress)
    except ObjectError as error:
        if error.error_class is ErrorClass.NOT_FOUND:
            raise _unconfirmed("the destination does not have the object after the upload") from None
        if error.error_class is not ErrorClass.TOO_LARGE:
            raise
    else:
        if sha256 == body.sha256:
            policy.matches += 1
            return found
    policy.mismatch_found = True
    raise _unconfirmed("the destination's bytes differ from those sent")


def _unconfirmed(message: str) -> ObjectError:
    return ObjectError(ErrorClass.UPLOAD_UNCONFIRMED, message)
