"""What a destination can do, found out with a few small objects under a prefix of the check's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from ferry.core import Confirmed, ErrorClass, FerryError, ObjectError, UserError, whole_body
from ferry.storage import (
    Access,
    ConditionUnsupported,
    Control,
    ObjectInfo,
    Store,
    md5_of_etag,
    open_store,
)

DATA = b"written by `ferry check`, which deletes this object at its end\n"
KEY = "probe"
HEADS_AT_ONCE = 16

Known = Literal["yes", "no", "unknown"]
_KNOWN: dict[bool | None, Known] = {True: "yes", False: "no", None: "unknown"}


@dataclass(slots=True)
class DestinationFacts:
    """What a destination can do. ``unknown``: it does not say, or refuses the question."""

    conditional_writes: Literal["yes", "ignored", "refused"] = "ignored"  # If-None-Match: * (RFC 9110, 13.1.2)
    checksums: Known = "unknown"  # whether a body with a wrong x-amz-checksum-sha256 is refused
    confirmed_by: Confirmed = Confirmed.SIZE  # how the probe's upload was confirmed
    md5_etags: bool = False
    listed: bool = False  # whether the probe was in the listing of its prefix
    deletes: bool = False
    versioning: str = "unknown"  # on, suspended or off
    encryption: str = "unknown"  # `none`, or an algorithm
    object_lock: Known = "unknown"
    problems: list[str] = field(default_factory=list)

    @property
    def keeps_what_is_deleted(self) -> bool:
        """Whether objects that are deleted would stay in the bucket, as versions."""
        return self.versioning in ("on", "suspended") or self.object_lock == "yes" or not self.deletes


def probe_destination(uri: str, access: Access, folder: Path) -> DestinationFacts:
    """Writes, reads, lists and deletes an object under ``uri``, a prefix without objects.

    Raises UserError if the destination cannot be written to or read.
    """
    facts = DestinationFacts()
    store = open_store(uri, access, folder, create=True)
    asyncio.run(_probe_objects(store, facts))
    if store.kind != "file":
        try:
            _probe_bucket(store.control(), store.path(KEY), facts)
        except (ObjectError, FerryError) as error:
            raise UserError(f"destination: {error}") from None
    return facts


async def _probe_objects(store: Store, facts: DestinationFacts) -> None:
    body = await whole_body(DATA, None)
    try:
        sent = await store.put(KEY, body, {"Content-Type": "text/plain"} if store.kind != "file" else {})
        confirmation = await store.confirm(KEY, body, sent)
        facts.confirmed_by, facts.md5_etags = confirmation.method, md5_of_etag(confirmation.etag) == body.md5
        facts.conditional_writes = await _creates_only_once(store)
        read, _, _ = await store.get(KEY, max_bytes=len(DATA), side="destination")
        if read.sha256 != body.sha256:
            raise UserError("destination: an object that was written is read back with other bytes")
        read.discard()
        facts.listed = await _lists(store, facts)
        facts.deletes = await _deletes(store, facts)
    except (ObjectError, FerryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"destination: {error}") from None
    finally:
        await store.close()


async def _creates_only_once(store: Store) -> Literal["yes", "ignored", "refused"]:
    """Returns whether a second conditional write of a key is refused, as it should be."""
    try:
        await store.put(KEY, await whole_body(DATA, None), {}, create=True)
    except ConditionUnsupported:
        return "refused"
    except ObjectError as error:
        if error.error_class is ErrorClass.EXISTS:
            return "yes"
        raise
    return "ignored"


async def _lists(store: Store, facts: DestinationFacts) -> bool:
    try:
        if await asyncio.to_thread(lambda: any(found.key == KEY for page in store.list() for found in page)):
            return True
        facts.problems.append("its listing lacks an object that was just written, so existing objects may be missed")
    except (ObjectError, FerryError) as error:
        facts.problems.append(f"listing is refused ({error}): a run of more than 500 rows asks for each key by HEAD")
    return False


async def _deletes(store: Store, facts: DestinationFacts) -> bool:
    try:
        await store.delete(KEY)
        if await store.head(KEY) is None:
            return True
        facts.problems.append("an object that was deleted is still there")
    except (ObjectError, FerryError) as error:
        facts.problems.append(f"deleting is refused ({error})")
    return False


def _probe_bucket(control: Control, key: str, facts: DestinationFacts) -> None:
    """Asks for the bucket's settings. Many stores refuse these questions, or do not know them."""
    found = control.settings(key, DATA)
    facts.checksums, facts.object_lock = _KNOWN[found.checksums], _KNOWN[found.object_lock]
    facts.versioning, facts.encryption = found.versioning or "unknown", found.encryption or "unknown"
    if facts.deletes:
        control.delete([key])


@dataclass(frozen=True, slots=True)
class Existing:
    """Objects that the destination has under keys of the sample. The others of ``asked`` keys are free."""

    asked: int = 0
    same: int = 0  # with the bytes that the sample has
    other: int = 0  # with other bytes
    unknown: int = 0  # the ETag does not tell


async def find_existing(uri: str, access: Access, folder: Path, digests: Mapping[str, str]) -> Existing:
    """Looks for the keys of ``digests`` (key -> MD5 of the sample's bytes) by HEAD. Errors count as free keys."""
    if uri.startswith("file:") and not Path(unquote(urlsplit(uri).path)).is_dir():
        return Existing(len(digests))
    store = open_store(uri, access, folder)
    slots = asyncio.Semaphore(HEADS_AT_ONCE)

    async def look(key: str) -> ObjectInfo | None:
        async with slots:
            with contextlib.suppress(ObjectError, FerryError):
                return await store.head(key)
        return None

    try:
        found = await asyncio.gather(*map(look, digests))
    finally:
        await store.close()
    etags = [(info.known_md5, md5) for info, md5 in zip(found, digests.values(), strict=True) if info]
    same = sum(etag == md5 for etag, md5 in etags)
    unknown = sum(etag is None for etag, _ in etags)
    return Existing(len(digests), same, len(etags) - same - unknown, unknown)
