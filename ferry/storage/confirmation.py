"""Whether the destination has what was sent: what its answer proves, and what is read back (docs/decisions/0032)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import NamedTuple, Protocol

from ferry.core import PART_BYTES, Body, Confirmed, ErrorClass, ObjectError
from ferry.storage.object_info import ObjectInfo, Sent, composite_etag, md5_of_etag, multipart_etag

READ_FIRST = 8  # objects, before the size of others is believed
READ_ONE_IN = 20  # of the others


class Told(Enum):
    """What an answer says of the bytes that the store holds."""

    SAME = auto()
    OTHER = auto()
    MAYBE_OTHER = auto()  # an ETag that looks like an MD5 and is another: other bytes, or SSE-KMS
    NOTHING = auto()


class Proof(NamedTuple):
    """How an object was confirmed, and its ETag."""

    how: Confirmed
    etag: str | None


def told(sent: Sent, md5: str, sha256: str, parts_etag: str | None = None) -> Told:
    """Compares an answer with the digests of what was sent; ``parts_etag``: the composite ETag that its parts make.

    The first row that fits:

    | the answer has | equal | different |
    |---|---|---|
    | a SHA-256 | same | other |
    | after parts: a composite ETag | same | other |
    | after parts: anything else | other | other |
    | an ETag that looks like an MD5 | same | maybe other |
    | any other ETag, or none | nothing | nothing |

    A composite ETag of SSE-KMS is not made of MD5s: after parts the bytes decide wherever the ETag does not.
    """
    if sent.sha256 is not None:
        return Told.SAME if sent.sha256 == sha256 else Told.OTHER
    if sent.in_parts:
        return Told.SAME if parts_etag is not None and composite_etag(sent.etag) == parts_etag else Told.OTHER
    etag = md5_of_etag(sent.etag)
    if etag is None:
        return Told.NOTHING
    return Told.SAME if etag == md5 else Told.MAYBE_OTHER


class Trust:
    """One store's record in this run: whether its ETags are MD5s, and what reading back has shown."""

    def __init__(self) -> None:
        self.md5_etags = False  # an ETag was the MD5 of its object: one that looks like an MD5 and differs is an alarm
        self.etags = False  # it answers uploads with an ETag: an answer without one may not be the store's
        self.right = 0
        self.wrong = False  # an object had other bytes than its size and its answer made believe

    def reads_back(self, what: Told, key: str) -> bool:
        """Is this object to be read back? What is not is confirmed by its size alone.

        | told | ETags are MD5s | read back so far | read back |
        |---|---|---|---|
        | other | any | any | yes |
        | maybe other | yes | any | yes |
        | maybe other, nothing | any other | fewer than 8 | yes |
        | maybe other, nothing | any other | one was wrong | yes |
        | maybe other, nothing | any other | 8 or more, all right | one in 20, drawn by its key |
        """
        if what is Told.OTHER or (what is Told.MAYBE_OTHER and self.md5_etags):
            return True
        return self.wrong or self.right < READ_FIRST or zlib.crc32(key.encode()) % READ_ONE_IN == 0


class Reads(Protocol):
    """What is asked of a store here."""

    async def head(self, key: str) -> ObjectInfo | None: ...
    async def digest(self, key: str, *, max_bytes: int, moved: Callable[[], object]) -> tuple[str, ObjectInfo]: ...


async def confirm(store: Reads, trust: Trust, key: str, body: Body, sent: Sent) -> Proof:
    """Confirms an upload by the store's answer, by reading it back, or by its size. Raises UPLOAD_UNCONFIRMED."""
    parts_etag = None
    if sent.in_parts and body.path is not None:
        parts_etag = sent.parts_etag or await asyncio.to_thread(multipart_etag, body.path, PART_BYTES)
        if not sent.etag:  # Ceph's RGW shows it to a HEAD alone
            sent = replace(sent, etag=(await of_size(store, key, body.size)).etag)
    trust.etags = trust.etags or bool(sent.etag)
    what = told(sent, body.md5, body.sha256, parts_etag)
    if what is Told.NOTHING and trust.etags and not sent.etag:
        what = Told.OTHER
    if what is Told.SAME:
        trust.md5_etags = trust.md5_etags or md5_of_etag(sent.etag) == body.md5
        return Proof(Confirmed.DIGEST, sent.etag)
    if trust.reads_back(what, key):
        found = await _read_back(store, trust, key, body)
        return Proof(Confirmed.READ_BACK, sent.etag or found.etag)
    found = await of_size(store, key, body.size)
    return Proof(Confirmed.SIZE, sent.etag or found.etag)


async def of_size(store: Reads, key: str, size: int) -> ObjectInfo:
    """The object, which must have so many bytes."""
    found = await store.head(key)
    if found is None:
        raise _unconfirmed("the destination does not show the object after the upload")
    if found.size != size:
        raise _unconfirmed(f"the destination shows {found.size:,} bytes where {size:,} were sent")
    return found


async def _read_back(store: Reads, trust: Trust, key: str, body: Body) -> ObjectInfo:
    """The object, whose bytes must be the body's."""
    try:
        sha256, found = await store.digest(key, max_bytes=body.size, moved=body.on_progress)
    except ObjectError as error:
        if error.error_class is ErrorClass.NOT_FOUND:
            raise _unconfirmed("the destination does not show the object after the upload") from None
        if error.error_class is not ErrorClass.TOO_LARGE:
            raise
    else:
        if sha256 == body.sha256:
            trust.right += 1
            return found
    trust.wrong = True
    raise _unconfirmed("the destination holds other bytes than were sent")


def _unconfirmed(message: str) -> ObjectError:
    return ObjectError(ErrorClass.UPLOAD_UNCONFIRMED, message)
