"""What Ferry asks of a provider's object store: the contract of s3/, gcs/ and azure/."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ferry.core import Body
from ferry.core import Digests as Digests
from ferry.http import Response, Upload
from ferry.storage.object_info import ObjectInfo, Sent

TRIAL = ".ferry-preflight-"  # begins the names of objects and uploads that only try something


class CannotCopy(Exception):
    """Raised if the server does not copy an object. The caller reads and writes the bytes."""


class TooLargeAtOnce(Exception):
    """Raised if a body is refused with HTTP 413, since a proxy may have a limit of its own. Parts may be accepted."""


class Got(NamedTuple):
    """A response with an object, its body unread, and what its header says."""

    response: Response
    info: ObjectInfo
    attributes: dict[str, str]  # by the names of ferry/core/attributes.py, without TAGS and KMS_KEY
    tagged: bool = False  # the object has tags, which tags() returns


class Page(NamedTuple):
    """One page of a listing. ``token`` asks for the next one; None on the last page."""

    objects: list[ObjectInfo]  # with full keys
    token: str | None  # "": there is a next page, but no token: it comes after the last key


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """What a bucket says of itself; None where it does not."""

    checksums: bool | None = None  # whether a body with another digest than the given one is refused
    versioning: str | None = None  # on, suspended or off
    encryption: str | None = None  # an algorithm, or none
    object_lock: bool | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an upload that the provider has: its number from 1 on, its size, and its MD5 as far as it is known."""

    number: int
    size: int
    etag: str
    md5: str | None = None


class Provider(Protocol):
    """One bucket or container, by full keys, for one event loop.

    Each request is sent once, and again only if an idle connection turns out to be closed: callers retry. Every method
    raises ObjectError and Fatal, worded for ``side`` (destination, source or state): at the source a refusal is the
    row's failure, at the destination it is Refused or Fatal.
    """

    endpoint: str  # for messages
    in_byte_order: bool  # whether listings are sorted by the bytes of the keys
    cuts_listings: bool  # whether some stores of this kind mark a listing as complete that is not
    parts_at_once: int  # parts of one upload that may be on their way; 1 where they must come in order

    @property
    def connections_opened(self) -> int: ...

    async def put(
        self, key: str, data: bytes | Upload, digests: Digests, attributes: Mapping[str, str], *, create: bool
    ) -> Sent:
        """Writes an object in one request that carries its digest. With ``create`` only if the key is free."""
        ...

    async def head(self, key: str, side: str) -> ObjectInfo | None: ...

    async def get(self, key: str, side: str, *, start: int = 0, if_version: str = "") -> Got:
        """Returns the bytes as they are stored, from ``start`` on, and only of the version that is named."""
        ...

    async def tags(self, key: str, side: str) -> str:
        """Returns an object's tags as TAGS has them, or "" if it has none."""
        ...

    async def copy(self, key: str, bucket: str, source: ObjectInfo, attributes: Mapping[str, str] = {}) -> Sent:
        """Has the server copy an object of ``bucket``, as listed, if it has not changed since. Raises CannotCopy.

        The MD5 of what is returned is that of both objects, as the server gives it. The copy has the source's
        attributes and tags; ``attributes`` has what a copy must be told: TIER, KMS_KEY.
        """
        ...

    async def delete(self, keys: Sequence[str], side: str) -> None:
        """Deletes up to 1,000 objects. A missing one is not an error. Several have tries of their own (delete_each)."""
        ...

    async def page(self, prefix: str, side: str, *, after: str | None = None, token: str | None = None) -> Page: ...

    # --- uploads in parts

    def part_bytes(self, size: int) -> int:
        """Returns the part size for a body. Raises ObjectError (TOO_LARGE) for one that the provider cannot hold."""
        ...

    async def begin(
        self, key: str, attributes: Mapping[str, str], size: int, *, md5: str | None, create: bool
    ) -> str | None:
        """Returns the ID of a new upload, or None if ``create`` is set and the key is known to be taken.

        ``md5`` is the whole body's, in hex digits, if it is known already.
        """
        ...

    async def put_part(self, key: str, upload: str, part: int, data: Upload, digests: Digests, offset: int) -> Part:
        """Sends a part. All parts but the last one have a multiple of 256 KiB."""
        ...

    async def complete(
        self,
        key: str,
        upload: str,
        parts: Sequence[Part],
        body: Body,
        attributes: Mapping[str, str],
        *,
        create: bool,
    ) -> Sent:
        """Makes the parts an object. Azure takes its attributes here, the others in :meth:`begin`."""
        ...

    async def parts(self, key: str, upload: str) -> list[Part] | None:
        """Returns the parts that the provider has, or None if it does not know the upload.

        Google Cloud Storage knows only how many bytes it has: they are one part.
        """
        ...

    async def abort(self, key: str, upload: str) -> None: ...

    def uploads(self, prefix: str) -> AsyncIterator[tuple[str, str]]:
        """Yields key and ID of each unfinished upload below a prefix; nothing where they cannot be listed."""
        ...

    # --- files of a state

    async def read(self, key: str) -> tuple[bytes, str] | None:
        """Returns a small object and its version, or None."""
        ...

    async def write_if(self, key: str, data: bytes, version: str | None) -> bool:
        """Writes a small object if it still has this version, or with None if it does not exist. Returns whether."""
        ...

    # --- preflight

    async def refusal(self, prefix: str, *, writing: bool, attributes: Mapping[str, str] = {}) -> str | None:
        """Returns why the bucket cannot be used, as the end of a sentence, or None. Leaves no object.

        ``attributes``: what each object is to have.
        """
        ...

    async def settings(self, key: str, data: bytes) -> BucketSettings:
        """Returns what the bucket says of itself, also by writing ``data`` to ``key``."""
        ...

    async def close(self) -> None: ...
