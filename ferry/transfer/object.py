"""Transfer of one object; :meth:`ObjectTransfer.transfer` has the steps in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from weakref import WeakValueDictionary

from ferry.core import (
    Body,
    Checked,
    Confirmed,
    ErrorClass,
    KnownCopy,
    ObjectError,
    Revalidate,
    Row,
    Status,
    StreamedBody,
    TransferResult,
)
from ferry.http import NotModified, Origin
from ferry.images import Kind as ImageKind
from ferry.images import is_quick, kind_of_type
from ferry.job import Checks, OnExisting, finish_key
from ferry.ratelimit import Limiter, Permit
from ferry.storage import AlreadyThere, ObjectInfo, Store
from ferry.transfer.attributes import Carrier
from ferry.transfer.body_check import check_body, check_start, lesser_check_of
from ferry.transfer.conflict import GUARDED, Step, UnconfirmedUploads, after_fetch, before_fetch, policy_for
from ferry.transfer.dedupe import Dedupe
from ferry.transfer.destination import Destination
from ferry.transfer.resume import Resume
from ferry.transfer.server_copy import CopyTrial, ServerCopy
from ferry.transfer.source import Fetch, Sources
from ferry.transfer.stall import Waits
from ferry.transfer.stored_objects import StoredObject


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """The part of the job that the transfer of one object needs."""

    checks: Checks
    on_existing: OnExisting
    max_bytes: int
    attributes: Carrier
    dedupe: bool = False
    settings_digest: str = ""


# How an unchanged copy was checked, by what was asked for: without reading the bytes, and after reading them.
CHECKED_BY_ANSWER = {
    Revalidate.CONDITIONAL_GET: Checked.CONDITION,
    Revalidate.HEAD: Checked.HEAD,
    Revalidate.HEAD_SIZE: Checked.SIZE,
}
CHECKED_BY_BODY = {
    Revalidate.CONDITIONAL_GET: Checked.BODY_AGAIN,
    Revalidate.HEAD: Checked.SIZE,
    Revalidate.HEAD_SIZE: Checked.SIZE,
    Revalidate.GET: Checked.BODY,
}
KEY_EXISTS = "the destination already has this key (on_existing: skip)"


def response_of(host: str) -> str:
    """Returns what a row waits for after its request was sent to the source."""
    return f"a response from {host}"


@contextlib.contextmanager
def _report_to(permit: Permit) -> Iterator[None]:
    """Reports to the source's limit how long the block took, and its error, if it is not the destination's."""
    started = time.monotonic()
    try:
        yield
    except ObjectError as error:
        if not error.at_destination:
            permit.failed(error, time.monotonic() - started)
        raise
    permit.succeeded(time.monotonic() - started)


@contextlib.contextmanager
def _body_of(fetch: Fetch, permit: Permit) -> Iterator[None]:
    """Discards the body after the block; an error of the block gets the body's digest and the number of requests.

    The error of reading a streamed body is reported to the source's limit.
    """
    body, started = fetch.body, time.monotonic()
    try:
        yield
    except ObjectError as error:
        error.requests, error.body_sha256 = fetch.requests, body.sha256 or None
        if isinstance(body, StreamedBody) and error is body.error:
            permit.failed(error, time.monotonic() - started)
        raise
    finally:
        body.discard()


class _ReadToEnd(Exception):
    """Raised for a streamed body that was read to compare it: it has to be fetched again to be written."""


class ObjectTransfer:
    """Transfers objects; many transfers may run at once in the event loop."""

    def __init__(
        self,
        origin: Origin,
        roots: Sequence[tuple[str, Store]],
        destination: Store,
        limiter: Limiter,
        options: TransferOptions,
        checkers: Executor,
        may_write: Callable[[], Awaitable[None]],
    ) -> None:
        """``may_write`` raises Fatal once another run may be working on this job's rows."""
        self._sources = Sources(origin, roots, options.max_bytes, tags=options.attributes.wants_tags)
        self._options = options
        self._checkers = checkers
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.unconfirmed = UnconfirmedUploads()
        self._attributes = options.attributes
        self.waits = Waits()
        self._destination = Destination(destination, limiter, may_write, self.waits)
        trial = CopyTrial(destination) if options.on_existing not in GUARDED else None
        carrier, checks = self._attributes, options.checks
        self._dedupe: Dedupe | None = None
        if options.dedupe:
            self._dedupe = Dedupe(self._destination, self.unconfirmed, carrier, checks, trial)
        self._server_copy: ServerCopy | None = None
        if trial is not None and checks is Checks.NONE:  # all other checks need the bytes
            self._server_copy = ServerCopy(
                self._sources, self._destination, carrier, trial, self.unconfirmed, max_bytes=options.max_bytes
            )
        self._resume = Resume(self._sources, self._destination, options.settings_digest)

    async def transfer(
        self,
        row: Row,
        found: ObjectInfo | None,
        permit: Permit,
        *,
        check_existing: bool = False,
        known: KnownCopy | None = None,
        in_ledger: TransferResult | None = None,
    ) -> TransferResult:
        """Fetches, checks, compares, stores and confirms an object.

        ``found`` is the existing object under the key; with ``check_existing`` it is requested by HEAD. ``known`` is a
        copy of the row, which is written again only if its source has changed. ``in_ledger`` is another row's copy with
        this row's digest. ``permit`` is that of the source. It is freed when the body has been received and the
        destination's permit is taken. So a slow destination slows the source down, and bodies do not pile up between
        them.

        Raises ObjectError (the row's failure), Fatal or PausedTooLong.
        """
        if known is not None:
            return await self._recheck(row, known, permit)
        policy = self._policy(row, row.key)
        stored = await self._dedupe.find(row, in_ledger) if self._dedupe is not None else None
        if self._dedupe is not None and stored is not None and (shared := await self._dedupe.share(row, stored)):
            return shared
        if check_existing and not row.deferred_key and policy is not OnExisting.OVERWRITE:
            async with self._destination.permit():
                found = await self._destination.head(row.key)
        step = before_fetch(policy, row, found)
        if step != "fetch" and not self.unconfirmed.may_have_arrived(row, row.key):
            assert found is not None
            return self._existing_result(step, row.key, found)
        if stored is not None and (copied := await self._copy_stored(row, stored, found, policy, permit)):
            return copied
        if self._server_copy is not None and found is None and (copied := await self._server_copy.copy(row, permit)):
            return copied
        self.waits.on(response_of(permit.host))
        with _report_to(permit):
            fetch = await self._resume.fetch(row, permit) or await self._sources.fetch(row, permit)
        with contextlib.suppress(_ReadToEnd), _body_of(fetch, permit):
            return await self._store(row, fetch, found, policy, permit)
        return await self._write_changed(row, fetch.requests, permit)

    async def _write_changed(self, row: Row, requests: int, permit: Permit) -> TransferResult:
        """Fetches a body again that was read to its end and differs from the object at the destination."""
        with _report_to(permit):
            fetch = await self._sources.fetch(row, permit)
        fetch.requests += requests
        if isinstance(fetch.body, StreamedBody):
            fetch.body.compared = True
        with _body_of(fetch, permit):
            return await self._store(row, fetch, None, OnExisting.OVERWRITE, permit)

    async def _recheck(self, row: Row, known: KnownCopy, permit: Permit) -> TransferResult:
        """Checks whether the source of a copy has changed, and transfers the object again if so."""
        self.waits.on(response_of(permit.host))
        with _report_to(permit):
            fetch = await self._resume.fetch(row, permit) or await self._sources.recheck(row, known, permit)
        same = TransferResult(
            Status.UNCHANGED, known.key, known.size, known.md5, known.sha256, known.content_type,
            fetch.etag or known.etag, fetch.last_modified or known.last_modified, known.dest_etag,
            message=lesser_check_of(kind_of_type(known.content_type), self._options.checks), requests=fetch.requests,
            confirmed=known.confirmed, attributes_sha256=known.attributes_sha256, lost_attributes=known.lost_attributes,
        )  # fmt: skip
        if isinstance(fetch, NotModified):
            same.checked_by = CHECKED_BY_ANSWER[known.revalidate]
            same.bytes_read_at = known.bytes_read_at
            return same
        with contextlib.suppress(_ReadToEnd), _body_of(fetch, permit):
            to_compare = isinstance(fetch.body, StreamedBody) and fetch.body.size == known.size
            if isinstance(fetch.body, StreamedBody) and to_compare:
                await fetch.body.read_to_end()
            if known.sha256:
                same_bytes = fetch.body.sha256 == known.sha256
            else:
                same_bytes = fetch.body.md5 == known.md5
            if same_bytes and self._attributes.unchanged(row, known, fetch):
                same.bytes_read = fetch.body.size - fetch.body.start
                same.checked_by = CHECKED_BY_BODY[known.revalidate]
                return same
            if not to_compare:
                return await self._store(row, fetch, None, OnExisting.OVERWRITE, permit)
        return await self._write_changed(row, fetch.requests, permit)

    async def _copy_stored(
        self, row: Row, stored: StoredObject, found: ObjectInfo | None, policy: OnExisting, permit: Permit
    ) -> TransferResult | None:
        """Copies a stored object within the destination. Returns None if the row is to be fetched."""
        assert self._dedupe is not None
        if found is None or policy is OnExisting.OVERWRITE:
            copied = await self._dedupe.copy(row, stored, overwrite=policy is OnExisting.OVERWRITE)
            if copied is not None:
                return copied
        if (fetch := await self._dedupe.read(row, stored)) is None:
            return None
        with _body_of(fetch, permit):
            result = await self._store(row, fetch, found, policy, permit)
        result.bytes_read, result.copy_of = 0, stored.result.key
        return result

    async def _store(
        self, row: Row, fetch: Fetch, found: ObjectInfo | None, policy: OnExisting, permit: Permit
    ) -> TransferResult:
        """Checks the body, waits for the destination's permit, and writes the object.

        A streamed body keeps the source's permit.
        """
        body = fetch.body
        body.on_progress = self.waits.moved
        result = TransferResult(
            Status.COPIED, row.key, body.size, body.md5 or None, body.sha256 or None, None, fetch.etag,
            fetch.last_modified, requests=fetch.requests, bytes_read=body.size - body.start,
        )  # fmt: skip
        kind = await self._check(row, fetch, result)
        attributes, lost, result.attributes_sha256 = self._attributes.of(row, fetch, result.content_type)
        result.lost_attributes = lost or None
        async with self._destination.permit():
            streamed = isinstance(body, StreamedBody)
            if not streamed:
                permit.release()
            if self._dedupe is None or streamed:  # no digest says yet which other object has these bytes
                return await self._write(row, result, body, attributes, found, policy, kind)
            async with self._dedupe.remembering(result, attributes, kind):
                return await self._write(row, result, body, attributes, found, policy, kind)

    async def _check(self, row: Row, fetch: Fetch, result: TransferResult) -> ImageKind | None:
        """Checks a body, completes the result, and returns the body's type.

        The rest of a body is not checked: the whole one was, before the upload began that the rest belongs to.
        """
        body, checks = fetch.body, self._options.checks
        if body.start and body.about is not None:
            result.content_type, result.message = body.about["content_type"], body.about["message"]
            return kind_of_type(result.content_type) if body.about["known"] else None
        if isinstance(body, StreamedBody):
            kind = check_start(row, fetch, body, checks)
        elif body.data is not None and checks is not Checks.DECODE and is_quick(body.data):
            kind = check_body(row, fetch, checks)
        else:
            self.waits.on("their check")
            kind = await asyncio.get_running_loop().run_in_executor(self._checkers, check_body, row, fetch, checks)
        result.content_type = kind.mime if kind else row.content_type or fetch.content_type
        result.message = lesser_check_of(kind, checks)
        body.about = self._resume.about(row, fetch, result, known=kind is not None)
        return kind

    async def _write(
        self,
        row: Row,
        result: TransferResult,
        body: Body,
        attributes: Mapping[str, str],
        found: ObjectInfo | None,
        policy: OnExisting,
        kind: ImageKind | None,
    ) -> TransferResult:
        """Writes the object under the row's key; a deferred key is completed first."""
        if not row.deferred_key:
            return await self._store_and_remember(row, result, body, attributes, found, policy)
        result.key = finish_key(row.key, sha256=body.sha256, ext=kind.ext if kind else "bin")
        # Rows with equal bodies have one key `{sha256}.{ext}`: the lock lets the second find the first one's object.
        async with self._key_locks.setdefault(result.key, asyncio.Lock()):
            policy = self._policy(row, result.key)
            if isinstance(body, StreamedBody) and body.compared and policy not in GUARDED:
                policy = OnExisting.OVERWRITE
            if policy is not OnExisting.OVERWRITE:
                found = await self._destination.head(result.key)
            return await self._store_and_remember(row, result, body, attributes, found, policy)

    async def _store_and_remember(
        self,
        row: Row,
        result: TransferResult,
        body: Body,
        attributes: Mapping[str, str],
        found: ObjectInfo | None,
        policy: OnExisting,
    ) -> TransferResult:
        """Stores the object, and records the key of an upload that was not confirmed."""
        try:
            await self._resolve_conflict(row, result, body, attributes, found, policy)
        except ObjectError as error:
            if policy in GUARDED and error.error_class is ErrorClass.UPLOAD_UNCONFIRMED:
                self.unconfirmed.note_failed(row, result.key)
            raise
        if result.status is Status.UNCHANGED and self.unconfirmed.may_have_arrived(row, result.key):
            result.status = Status.COPIED  # by an upload whose response was lost
        self.unconfirmed.forget(row)
        return result

    def _policy(self, row: Row, key: str) -> OnExisting:
        """Returns the policy for a row; its own unconfirmed upload is always overwritten."""
        failed = self.unconfirmed.has_failed(row, key)
        return OnExisting.OVERWRITE if failed else policy_for(self._options.on_existing, row)

    async def _resolve_conflict(
        self,
        row: Row,
        result: TransferResult,
        body: Body,
        attributes: Mapping[str, str],
        found: ObjectInfo | None,
        policy: OnExisting,
    ) -> TransferResult:
        """Keeps the existing object under the key, or writes the body there."""
        streamed = isinstance(body, StreamedBody)
        if self._dedupe is not None and not streamed and (self._attributes.may_lose or not result.lost_attributes):
            replaces = found is None or policy is OnExisting.OVERWRITE
            if await self._dedupe.instead_of_put(row, result, attributes, found, replaces=replaces):
                return result
        if found is not None and await self._keep_existing(result, body, found, policy):
            return result
        self._attributes.refuse_loss(result.lost_attributes or ())
        create = policy in GUARDED  # a conditional PUT, in case the key was written since the plan
        try:
            (result.confirmed, result.dest_etag), refused = await self._destination.put(
                result.key, body, attributes, create=create, may_lose=self._attributes.may_lose
            )
            result.md5, result.sha256 = body.md5, body.sha256
            self._attributes.note_refused(result, attributes, refused)
        except ObjectError as error:
            exists = error.error_class is ErrorClass.EXISTS
            may_be_this_upload = isinstance(error, AlreadyThere) and error.maybe_ours
            if error.at_destination and not error.outage and (not exists or may_be_this_upload):
                self.unconfirmed.note_sent(row, result.key)
            if not exists:
                raise
            found = await self._destination.head(result.key)
            if found is None or not await self._keep_existing(result, body, found, policy):
                raise
        return result

    async def _keep_existing(self, result: TransferResult, body: Body, found: ObjectInfo, policy: OnExisting) -> bool:
        """Returns whether the existing object is kept, and completes the result if so.

        It is not kept if the body is to replace it, or if it was deleted in the meantime. Raises ObjectError with the
        class `exists` if the policy is `fail` and the bytes differ.
        """
        if policy is OnExisting.OVERWRITE:
            return False
        streamed = isinstance(body, StreamedBody) and not body.sha256 and found.size == body.size
        if isinstance(body, StreamedBody) and streamed:
            await body.read_to_end()
            result.md5, result.sha256 = body.md5, body.sha256
        try:
            equal = await self._destination.equal(result.key, body, found)
        except ObjectError as error:
            if error.error_class is ErrorClass.NOT_FOUND and not streamed:
                return False
            if error.error_class is ErrorClass.NOT_FOUND and policy not in GUARDED:
                raise _ReadToEnd from None
            if error.error_class is ErrorClass.NOT_FOUND:
                text = "the object under the key was deleted while it was compared; the source is read again"
                raise ObjectError(ErrorClass.STORE_ERROR, text) from None
            if error.error_class is not ErrorClass.TOO_LARGE:
                raise
            equal = None  # it was replaced by a larger object since
        action = after_fetch(policy, equal is not None)
        if action == "put" and streamed:
            raise _ReadToEnd
        if action == "put":
            return False
        if action == "exists":
            raise ObjectError(
                ErrorClass.EXISTS,
                "the destination has another object under this key. Delete it, or change `on_existing`",
            )
        result.confirmed, result.dest_etag = equal or (None, found.etag)
        result.status = Status.UNCHANGED
        result.attributes_sha256 = result.lost_attributes = None  # those of the object that stays are not known
        if action == "skip":
            result.status, result.error_class = Status.SKIPPED, ErrorClass.EXISTS
            result.message = KEY_EXISTS
        return True

    def _existing_result(self, step: Step, key: str, found: ObjectInfo) -> TransferResult:
        """Returns the result for an existing object that is kept without a download."""
        unchanged = step == "unchanged"
        return TransferResult(
            Status.UNCHANGED if unchanged else Status.SKIPPED,
            key,
            found.size,
            md5=found.known_md5 if unchanged else None,
            dest_etag=found.etag,
            error_class=None if unchanged else ErrorClass.EXISTS,
            message=None if unchanged else KEY_EXISTS,
            confirmed=Confirmed.DIGEST if unchanged else None,
        )
