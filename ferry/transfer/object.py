"""One row -> what became of it. The steps stand in order in :meth:`ObjectTransfer.move`."""

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
    TransferResult,
)
from ferry.http import NotModified, Origin
from ferry.images import Kind as ImageKind
from ferry.images import check_image, decode_image, is_quick, kind_of_type, lesser_check, level_of, sniff
from ferry.job import Checks, OnExisting, finish_key
from ferry.ratelimit import DESTINATION, Limiter, Permit, tell
from ferry.storage import AlreadyThere, NotPlain, ObjectInfo, Proof, Store, md5_of_etag
from ferry.transfer.conflict import Step, Unconfirmed, after_fetch, before_fetch, policy_for
from ferry.transfer.destination_outage import Kind, Outage
from ferry.transfer.source import Fetch, Sources
from ferry.transfer.stall import TURN, Waits


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """The part of the job that a single transfer needs."""

    checks: Checks
    on_existing: OnExisting
    max_bytes: int
    attributes: Mapping[str, str]  # Cache-Control and user metadata that objects are written with


MOST_COPIED = 5 * 1024**3  # bytes that S3 copies in one request (CopyObject)
# what is noted of an object that is the known one: without its bytes, and with them
TOLD = {
    Revalidate.CONDITIONAL_GET: Checked.CONDITION,
    Revalidate.HEAD: Checked.HEAD,
    Revalidate.HEAD_SIZE: Checked.SIZE,
}
READ_AGAIN = {
    Revalidate.CONDITIONAL_GET: Checked.BODY_AGAIN,
    Revalidate.HEAD: Checked.SIZE,
    Revalidate.HEAD_SIZE: Checked.SIZE,
    Revalidate.GET: Checked.BODY,
}
PLACE = "a place at the destination"
GUARDED = (OnExisting.SKIP, OnExisting.FAIL)  # a key that appears since the plan was made must not be replaced


def answer_of(host: str) -> str:
    """What a row waits for whose source was asked."""
    return f"an answer of {host}"


@contextlib.contextmanager
def _asking(place: Permit) -> Iterator[None]:
    """The source's limit hears how the work of the block went."""
    started = time.monotonic()
    try:
        yield
    except ObjectError as error:
        place.failed(error, time.monotonic() - started)
        raise
    place.came(time.monotonic() - started)


@contextlib.contextmanager
def _held(fetch: Fetch) -> Iterator[None]:
    """The body is there in the block; an error that ends it says what came."""
    try:
        yield
    except ObjectError as error:
        error.requests, error.body_sha256 = fetch.requests, fetch.body.sha256
        raise
    finally:
        fetch.body.discard()


def _refuse_unmeasured(kind: ImageKind, *, decode: bool) -> None:
    """Raises ObjectError for a body that ended with its connection, of a kind of which nothing else shows a cut."""
    if level_of(kind, decode=decode) == "length":
        raise ObjectError(
            ErrorClass.TRUNCATED,
            "the origin did not say how long the body is (no Content-Length, not chunked), and the structure of a "
            f"{kind.name} is not checked: it may be cut. Put its size or a digest into the manifest",
        )


class ObjectTransfer:
    """Moves one object at a time, as many times at once as it is asked to."""

    def __init__(
        self,
        origin: Origin,
        roots: Sequence[tuple[str, Store]],
        destination: Store,
        limiter: Limiter,
        rules: TransferOptions,
        checkers: Executor,
        may_write: Callable[[], Awaitable[None]],
    ) -> None:
        """``may_write`` raises Fatal once another run may be at work on this job's rows."""
        self._sources = Sources(origin, roots, rules.max_bytes)
        self._destination = destination
        self._limiter = limiter
        self._rules = rules
        self._checkers = checkers
        self._may_write = may_write
        self._late_keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.unconfirmed = Unconfirmed()
        self._given = {name: value for name, value in rules.attributes.items() if value}
        self._outage = Outage(time.monotonic)
        self.waits = Waits()

    async def move(
        self, row: Row, found: ObjectInfo | None, place: Permit, *, look: bool = False, known: KnownCopy | None = None
    ) -> TransferResult:
        """Get, check, compare, put, confirm. Raises ObjectError (the row's failure), Fatal or PausedTooLong.

        ``found`` is the object known to stand under the key; with ``look`` it is asked for by HEAD. ``place`` at the
        source is free again once the body is here and has a place at the destination: so a slow destination slows
        the source down, and bodies do not pile up between them. ``known``: an object of ours stands under the key
        already, and is written again only if its source has become another one.
        """
        if known is not None:
            return await self._move_again(row, known, place)
        policy = self._policy(row, row.key)
        if look and not row.deferred_key and policy is not OnExisting.OVERWRITE:
            self.waits.on(PLACE)
            async with self._limiter.host(DESTINATION).slot():
                found = await self._head(row.key)
        step = before_fetch(policy, row, found)
        if step != "fetch" and not self.unconfirmed.sent(row, row.key):
            assert found is not None
            return self._left_alone(step, row.key, found)
        if (source := self._on_one_server(row, found)) is not None:
            with contextlib.suppress(NotPlain):
                return await self._have_copied(row, source, place)
        self.waits.on(answer_of(place.host))
        with _asking(place):
            fetch = await self._sources.fetch(row, place)
        with _held(fetch):
            return await self._land(row, fetch, found, policy, place)

    async def _move_again(self, row: Row, known: KnownCopy, place: Permit) -> TransferResult:
        """As :meth:`move`, for an object that was moved before."""
        self.waits.on(answer_of(place.host))
        with _asking(place):
            fetch = await self._sources.look(row, known, place)
        same = TransferResult(
            Status.UNCHANGED, known.key, known.size, known.md5, known.sha256, known.content_type,
            fetch.etag or known.etag, fetch.last_modified or known.last_modified, known.dest_etag,
            message=self._lesser_check(kind_of_type(known.content_type)), requests=fetch.requests,
            confirmed=known.confirmed,
        )  # fmt: skip
        if isinstance(fetch, NotModified):
            same.checked_by = TOLD[known.revalidate]
            same.bytes_read_at = known.bytes_read_at
            return same
        with _held(fetch):
            if fetch.body.sha256 == known.sha256 if known.sha256 else fetch.body.md5 == known.md5:
                same.bytes_read = fetch.body.size
                same.checked_by = READ_AGAIN[known.revalidate]
                return same
            return await self._land(row, fetch, None, OnExisting.OVERWRITE, place)

    def _on_one_server(self, row: Row, found: ObjectInfo | None) -> tuple[Store, str] | None:
        """Where the server may copy the object by itself: the bucket and the key (docs/decisions/0012).

        Only with `checks: none`, since everything else is about bytes that have come here; for objects that were
        listed, whose key is free, and that are written as they are: no digest of the manifest's, no type, attributes
        or late key.
        """
        if self._rules.checks is not Checks.NONE or found is not None or self._given or row.deferred_key:
            return None
        if row.size is None or not row.etag or row.md5 or row.sha256 or row.content_type:
            return None
        if row.size > min(self._rules.max_bytes, MOST_COPIED) or self._rules.on_existing in GUARDED:
            return None
        for root, store in self._sources.roots:
            if row.source.startswith(root):
                return (store, row.source[len(root) :]) if self._destination.can_copy_from(store) else None
        return None

    async def _have_copied(self, row: Row, source: tuple[Store, str], place: Permit) -> TransferResult:
        assert row.size is not None
        assert row.etag is not None
        limit = self._limiter.host(DESTINATION)
        started = time.monotonic()
        self.waits.on(PLACE)
        async with limit.slot():
            await self._may_write()
            self.waits.on("the destination's answer to a copy")
            self.unconfirmed.note_sent(row, row.key)
            with self._telling(row.key, "write"):
                how, etag = await self._destination.copy_from(
                    *source, row.key, size=row.size, etag=row.etag, moved=self.waits.moved
                )
        self.unconfirmed.forget(row)
        place.came(time.monotonic() - started)
        md5 = None if how is Confirmed.SIZE else md5_of_etag(row.etag)
        return TransferResult(
            Status.COPIED, row.key, row.size, md5, source_etag=row.etag, source_last_modified=row.last_modified,
            dest_etag=etag, requests=1, bytes_read=row.size, confirmed=how,
        )  # fmt: skip

    async def _land(
        self, row: Row, fetch: Fetch, found: ObjectInfo | None, policy: OnExisting, place: Permit
    ) -> TransferResult:
        """Checks the body, and writes it in a place at the destination."""
        body = fetch.body
        body.moved = self.waits.moved
        if body.data is not None and self._rules.checks is not Checks.DECODE and is_quick(body.data):
            kind = self._check(row, fetch)
        else:
            self.waits.on("their check")
            kind = await asyncio.get_running_loop().run_in_executor(self._checkers, self._check, row, fetch)
        moved = TransferResult(
            Status.COPIED, row.key, body.size, body.md5, body.sha256, self._content_type(row, fetch, kind),
            fetch.etag, fetch.last_modified, message=self._lesser_check(kind), requests=fetch.requests,
            bytes_read=body.size,
        )  # fmt: skip
        given = {**fetch.attributes, **self._given} if fetch.attributes else self._given.copy()
        if moved.content_type:
            given["Content-Type"] = moved.content_type
        self.waits.on(PLACE)
        async with self._limiter.host(DESTINATION).slot():
            place.free()
            return await self._write(row, moved, body, given, found, policy, kind)

    async def _write(
        self,
        row: Row,
        moved: TransferResult,
        body: Body,
        given: Mapping[str, str],
        found: ObjectInfo | None,
        policy: OnExisting,
        kind: ImageKind | None,
    ) -> TransferResult:
        if not row.deferred_key:
            return await self._mind(row, moved, body, given, found, policy)
        moved.key = finish_key(row.key, sha256=body.sha256, ext=kind.ext if kind else "bin")
        # Rows that come to one key, `{sha256}.{ext}` of equal bodies, one after the other: the next sees the first.
        async with self._late_keys.setdefault(moved.key, asyncio.Lock()):
            policy = self._policy(row, moved.key)
            if policy is not OnExisting.OVERWRITE:
                found = await self._head(moved.key)
            return await self._mind(row, moved, body, given, found, policy)

    async def _mind(
        self,
        row: Row,
        moved: TransferResult,
        body: Body,
        attributes: Mapping[str, str],
        found: ObjectInfo | None,
        policy: OnExisting,
    ) -> TransferResult:
        """Settles the row, and keeps in mind where its upload went wrong."""
        try:
            await self._settle(row, moved, body, attributes, found, policy)
        except ObjectError as error:
            if policy in GUARDED and error.error_class is ErrorClass.UPLOAD_UNCONFIRMED:
                self.unconfirmed.note(row, moved.key)
            raise
        if moved.status is Status.UNCHANGED and self.unconfirmed.sent(row, moved.key):
            moved.status = Status.COPIED  # by an upload whose answer was lost
        self.unconfirmed.forget(row)
        return moved

    def _policy(self, row: Row, key: str) -> OnExisting:
        ours = self.unconfirmed.ours(row, key)
        return OnExisting.OVERWRITE if ours else policy_for(self._rules.on_existing, row)

    async def _settle(
        self,
        row: Row,
        moved: TransferResult,
        body: Body,
        attributes: Mapping[str, str],
        found: ObjectInfo | None,
        policy: OnExisting,
    ) -> TransferResult:
        """Leaves alone what stands under the key, or puts the body there."""
        if found is not None and await self._stays(moved, body, found, policy):
            return moved
        create = policy in GUARDED  # a last guard against a key that the plan did not see
        try:
            moved.confirmed, moved.dest_etag = await self._put(moved.key, body, attributes, create)
        except ObjectError as error:
            there = error.error_class is ErrorClass.EXISTS
            if not error.nobody_there and (not there or (isinstance(error, AlreadyThere) and error.maybe_ours)):
                self.unconfirmed.note_sent(row, moved.key)
            if not there:
                raise
            found = await self._head(moved.key)
            if found is None or not await self._stays(moved, body, found, policy):
                raise
        return moved

    async def _stays(self, moved: TransferResult, body: Body, found: ObjectInfo, policy: OnExisting) -> bool:
        """Judges an object that stands under the key: False when the body is to replace it, or it has gone since.

        Raises ObjectError with ``exists`` where the policy is to fail.
        """
        try:
            equal = await self._equal(moved.key, body, found)
        except ObjectError as error:
            if error.error_class is ErrorClass.NOT_FOUND:
                return False
            if error.error_class is not ErrorClass.TOO_LARGE:
                raise
            equal = None  # it has become another one since
        action = after_fetch(policy, equal is not None)
        if action == "put":
            return False
        if action == "exists":
            raise ObjectError(ErrorClass.EXISTS, "the destination has another object under this key")
        moved.confirmed, moved.dest_etag = equal or (None, found.etag)
        moved.status = Status.UNCHANGED
        if action == "skip":
            moved.status, moved.error_class = Status.SKIPPED, ErrorClass.EXISTS
            moved.message = "the destination has this key"
        return True

    async def _put(self, key: str, body: Body, attributes: Mapping[str, str], create: bool) -> Proof:
        """Uploads and has the destination confirm it."""
        limit = self._limiter.host(DESTINATION)
        if delay_s := limit.charge(body.size):
            self.waits.on(TURN)
            await asyncio.sleep(delay_s)
        await self._may_write()  # what was fetched before a suspension may be older than what that run has put here
        self.waits.on("the destination's answer to PUT")
        with self._telling(key, "write"):
            sent = await self._destination.put(key, body, attributes, create=create)
            return await self._destination.confirm(key, body, sent)

    async def _head(self, key: str) -> ObjectInfo | None:
        """What stands under the key; in a place at the destination."""
        self.waits.on("the destination's answer to HEAD")
        with self._telling(key, "read"):
            return await self._destination.head(key)

    @contextlib.contextmanager
    def _telling(self, key: str, kind: Kind) -> Iterator[None]:
        """The destination's limit hears how the work of the block went, and the error that it was the destination's.

        Raises Fatal when the destination has been silent for too long.
        """
        limit = self._limiter.host(DESTINATION)
        started = time.monotonic()
        try:
            yield
        except ObjectError as error:
            tell(limit, error, time.monotonic() - started)
            error.at_destination = True
            if self._outage.failed(key, error, kind):
                error.nobody_there = True
                limit.rest(error.message)
            raise
        if kind == "write":
            limit.ok(time.monotonic() - started)
        self._outage.answered(kind)

    def _check(self, row: Row, fetch: Fetch) -> ImageKind | None:
        """The levels, each with those before, and the manifest's digests. Returns the type, where known.

        A body that its bucket keeps compressed is stored as it is, so it is no image by its bytes.
        """
        body, checks = fetch.body, self._rules.checks
        if checks is not Checks.NONE and row.size is not None and row.size != body.size:
            raise ObjectError(
                ErrorClass.TRUNCATED if body.size < row.size else ErrorClass.DIGEST_MISMATCH,
                f"{body.size:,} bytes came where the manifest says {row.size:,}",
            )
        structure = checks in (Checks.IMAGE, Checks.DECODE) and "Content-Encoding" not in fetch.attributes
        with body.buffer() as data:
            kind = check_image(data) if structure else sniff(data)
        for name, claimed, actual in (("md5", row.md5, body.md5), ("sha256", row.sha256, body.sha256)):
            if claimed is not None and claimed != actual:
                raise ObjectError(
                    ErrorClass.DIGEST_MISMATCH, f"the bytes have {name} {actual}, the manifest says {claimed}"
                )
        measured = fetch.length_known or row.size is not None or row.md5 or row.sha256
        if structure and kind is not None and not measured:
            _refuse_unmeasured(kind, decode=checks is Checks.DECODE)
        if checks is Checks.DECODE and kind is not None:
            with body.buffer() as data:
                decode_image(data, kind)
        return kind

    def _lesser_check(self, kind: ImageKind | None) -> str | None:
        """Returns which check a body of this kind got, where that is less than the job asks for."""
        if kind is None or self._rules.checks not in (Checks.IMAGE, Checks.DECODE):
            return None
        return lesser_check(kind, decode=self._rules.checks is Checks.DECODE)

    async def _equal(self, key: str, body: Body, found: ObjectInfo) -> Proof | None:
        """Compares the object at the destination with the body: by its MD5 where the ETag is one, else by reading it.

        None: it has other bytes. A directory's listing has no ETags; what was read has.
        """
        if found.size != body.size:
            return None
        if md5_of_etag(found.etag) == body.md5:
            return Proof(Confirmed.DIGEST, found.etag)
        with self._telling(key, "read"):
            sha256, read = await self._destination.digest(key, max_bytes=found.size, moved=self.waits.moved)
        return Proof(Confirmed.READ_BACK, read.etag) if sha256 == body.sha256 else None

    def _left_alone(self, step: Step, key: str, found: ObjectInfo) -> TransferResult:
        unchanged = step == "unchanged"
        return TransferResult(
            Status.UNCHANGED if unchanged else Status.SKIPPED,
            key,
            found.size,
            md5=md5_of_etag(found.etag) if unchanged else None,
            dest_etag=found.etag,
            error_class=None if unchanged else ErrorClass.EXISTS,
            message=None if unchanged else "the destination has this key",
            confirmed=Confirmed.DIGEST if unchanged else None,
        )

    @staticmethod
    def _content_type(row: Row, fetch: Fetch, kind: ImageKind | None) -> str | None:
        """What the bytes are; else the manifest's word, else the origin's."""
        if kind is not None:
            return kind.mime
        return row.content_type or fetch.content_type
