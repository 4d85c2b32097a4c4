"""Dedupe: what is stored for one row is copied at the destination for others, or shared (docs/decisions/0055)."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from ferry.core import Confirmed, ObjectError, Reason, Row, Status, TransferResult, word_of
from ferry.images import Kind as ImageKind
from ferry.images import kind_of_type
from ferry.job import Checks
from ferry.storage import CannotCopy, Confirmation, ObjectInfo, md5_of_etag
from ferry.transfer.attributes import Carrier
from ferry.transfer.body_check import lesser_check_of
from ferry.transfer.conflict import UnconfirmedUploads
from ferry.transfer.destination import Destination
from ferry.transfer.server_copy import CopyTrial
from ferry.transfer.source import Fetch
from ferry.transfer.stored_objects import StoredObject, StoredObjects

FRESH_S = 60.0  # an object that was written or asked for longer ago is asked for before it is copied
REFUSALS = 8  # copies in a row that the server refused or failed, after which it is not asked again


class Dedupe:
    """Finds stored objects with a row's bytes, and has the destination's server copy them."""

    def __init__(
        self,
        destination: Destination,
        unconfirmed: UnconfirmedUploads,
        carrier: Carrier,
        checks: Checks,
        trial: CopyTrial | None,
    ) -> None:
        """``trial``: None if no copy by the server may replace an object."""
        self.objects = StoredObjects()
        self._destination = destination
        self._store = destination.store
        self._unconfirmed = unconfirmed
        self._carrier = carrier
        self._checks = checks
        self._trial = trial
        self._copies = False  # until the trial has shown it
        self._refusals = self._unanswered = 0

    async def find(self, row: Row, in_ledger: TransferResult | None) -> StoredObject | None:
        """Returns a stored object with the digests that the manifest has for the row, if it may be used for it.

        ``in_ledger`` is the result of a row of an earlier run, which had the job's attributes and a check of its type.
        The first calls wait for the trial of the server's copies, while no row holds memory, which the trial needs.
        """
        if self._trial is not None:
            self._copies = await self._trial.succeeds()
        stored = self.objects.find(row.sha256, row.md5)
        known = self._carrier.before_fetch(row)
        if stored is None and in_ledger is not None and known is not None:
            kind = kind_of_type(in_ledger.content_type)
            result = replace(in_ledger, message=lesser_check_of(kind, self._checks))
            attributes = {**known, "Content-Type": result.content_type or ""}
            stored = StoredObject(result, attributes, kind, seen_at=-math.inf)
        return stored if stored is not None and stored.may_be(row) and self._may_use(row, row.key) else None

    def _may_use(self, row: Row, key: str) -> bool:
        """Returns whether the row may do without a download or an upload.

        A repair may not: an object may have other bytes under the ETag that Ferry knows. Nor may a try after one that
        may have written the key: it takes the usual way.
        """
        return row.reason is not Reason.REPAIR and not self._unconfirmed.may_have_arrived(row, key)

    async def share(self, row: Row, stored: StoredObject) -> TransferResult | None:
        """Returns the result of a row whose key has this object already, or None if it has not."""
        if stored.key_for(row) != stored.result.key:
            return None
        async with self._destination.permit():
            if not stored.is_intact(await self._head(stored.result.key)):
                return None
        return replace(_without_download(stored, stored.result.key), status=Status.UNCHANGED)

    async def _head(self, key: str) -> ObjectInfo | None:
        """Returns the object under the key, or None if there is none, or the store does not say.

        After REFUSALS errors in a row the store is not asked again, since credentials may only allow to write. Raises
        Fatal, and ObjectError in an outage.
        """
        if self._unanswered >= REFUSALS:
            return None
        try:
            found = await self._destination.head(key)
        except ObjectError as error:
            if error.outage:
                raise
            self._unanswered += 1
            return None
        self._unanswered = 0
        return found

    async def copy(self, row: Row, stored: StoredObject, *, overwrite: bool) -> TransferResult | None:
        """Has the server copy an object for a row that was not downloaded. Returns None if the caller is to fetch."""
        key = stored.key_for(row)
        if not stored.is_what_the_row_gets(row, self._carrier.before_fetch(row)):
            return None
        async with self._destination.permit():
            if row.deferred_key and not overwrite and await self._destination.head(key) is not None:
                return None
            copied = await self._copy(row, stored, key)
        if copied is None:
            return None
        self._unconfirmed.forget(row)
        return replace(_without_download(stored, key), confirmed=copied.method, dest_etag=copied.etag)

    async def read(self, row: Row, stored: StoredObject) -> Fetch | None:
        """Returns the body of an object in a directory, or None if it has other bytes, or is elsewhere.

        The caller holds no permit for the destination: other rows hold memory while they wait for one.
        """
        result = stored.result
        if self._store.kind != "file" or not stored.is_what_the_row_gets(row, self._carrier.before_fetch(row)):
            return None
        with contextlib.suppress(ObjectError):
            body, _, _ = await self._store.get(result.key, max_bytes=result.size or 0, side="destination")
            if body.sha256 == result.sha256:
                return Fetch(body, result.content_type, None, None, 0)
            body.discard()
        self.objects.forget(stored)
        return None

    @contextlib.asynccontextmanager
    async def remembering(
        self, result: TransferResult, attributes: Mapping[str, str], kind: ImageKind | None
    ) -> AsyncIterator[None]:
        """Remembers the object that the block writes, with the attributes that the store has kept.

        Waits while another row writes the same bytes as the first.
        """
        sha256 = result.sha256 or ""
        async with self.objects.first(sha256):
            yield
            if result.status is Status.COPIED and self.objects.find(sha256) is None:
                written, lost = replace(result, bytes_read_at=datetime.now(UTC)), result.lost_attributes or ()
                kept = {name: value for name, value in attributes.items() if word_of(name) not in lost}
                self.objects.add(StoredObject(written, kept, kind, time.monotonic()))

    async def instead_of_put(
        self,
        row: Row,
        result: TransferResult,
        attributes: Mapping[str, str],
        found: ObjectInfo | None,
        *,
        replaces: bool,
    ) -> bool:
        """Uses a stored object for a row that was downloaded, and completes the result.

        ``found`` is the existing object under the key. ``replaces``: there is none, or it is to be replaced. Returns
        False if the caller is to compare and write the body.
        """
        stored = self.objects.find(result.sha256)
        if stored is None or not self._may_use(row, result.key):
            return False
        if stored.result.key == result.key:
            if not stored.is_intact(found or await self._head(result.key)):
                return False
            result.status, result.confirmed = Status.UNCHANGED, stored.result.confirmed
            result.dest_etag = stored.result.dest_etag
            result.attributes_sha256 = stored.result.attributes_sha256
            result.lost_attributes = stored.result.lost_attributes
        elif replaces and stored.attributes == attributes and (copied := await self._copy(row, stored, result.key)):
            result.confirmed, result.dest_etag = copied
        else:
            return False
        result.copy_of = stored.result.key
        return True

    async def _copy(self, row: Row, stored: StoredObject, key: str) -> Confirmation | None:
        """Has the server copy an object to ``key``. Returns None if it does not, or if no digest confirms the copy.

        After REFUSALS of these in a row the server is not asked again. A changed object does not count as a refusal.
        Raises Fatal, and ObjectError in an outage.
        """
        from_ = stored.result
        may_copy = self._copies and self._refusals < REFUSALS and key != from_.key
        if not may_copy or not self._may_be_copied(stored) or not await self._is_current(stored):
            return None
        await self._destination.check_lease()
        self._unconfirmed.note_sent(row, key)
        try:
            how, etag = await self._destination.copy_from(
                self._store, from_.key, key, {}, size=from_.size or 0, etag=from_.dest_etag or ""
            )
            if how is not Confirmed.SIZE or md5_of_etag(etag) == from_.md5:
                self._refusals = 0
                return Confirmation(Confirmed.DIGEST if how is Confirmed.SIZE else how, etag)
        except CannotCopy:
            pass
        except ObjectError as error:
            if error.outage:
                raise
        stored.seen_at = -math.inf
        self._refusals += await self._is_current(stored)
        return None

    def _may_be_copied(self, stored: StoredObject) -> bool:
        return may_be_copied(stored.result, stored.attributes, self._store.capabilities.copies_up_to)

    async def _is_current(self, stored: StoredObject) -> bool:
        """Returns whether an object still has its bytes and attributes; one that has not is forgotten.

        A program that changes attributes alone leaves the ETag, and a new date. A store's clock may differ by FRESH_S.
        """
        now, written_at = time.monotonic(), stored.result.bytes_read_at
        if now - stored.seen_at <= FRESH_S:
            return True
        found = await self._head(stored.result.key)
        modified = found.last_modified if found is not None else None
        if stored.is_intact(found) and modified and written_at and modified - written_at <= timedelta(seconds=FRESH_S):
            stored.seen_at = now
            return True
        self.objects.forget(stored)
        return False


def may_be_copied(result: TransferResult, attributes: Mapping[str, str], most: int) -> bool:
    """Returns whether the server's copy of an object can be confirmed, and gets its attributes.

    An ETag that looks like an MD5 and is not the one of the bytes (SSE-KMS) confirms nothing. CopyObject does not take
    over what is not a header or user metadata, such as the storage class: the names of such attributes begin with `:`.
    ``most``: bytes that the server copies in one go.
    """
    if not result.dest_etag or result.size is None or result.size > most:
        return False
    return md5_of_etag(result.dest_etag) in (None, result.md5) and not any(name[0] == ":" for name in attributes)


def _without_download(stored: StoredObject, key: str) -> TransferResult:
    """Returns the result of a row that gets a stored object's bytes under ``key``."""
    return replace(
        stored.result, key=key, source_etag=None, source_last_modified=None, requests=0, bytes_read=0,
        copy_of=stored.result.key,
    )  # fmt: skip
