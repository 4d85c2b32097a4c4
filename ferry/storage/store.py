"""One interface to object stores: buckets through their Provider, directories through directory/.

Each call maps errors by ferry/storage/errors.py and raises only ObjectError or Fatal; copy_from also raises CannotCopy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from typing import Literal

from ferry.core import (
    ONE_PUT_BYTES,
    PART_BYTES,
    Body,
    Bucket,
    Budget,
    Charge,
    Confirmed,
    ErrorClass,
    ObjectError,
    Refused,
    StreamedBody,
    Tries,
    no_delay,
)
from ferry.http import Algorithm, Rest
from ferry.storage.access import Access
from ferry.storage.attribute_refusals import AttributeRefusals
from ferry.storage.capabilities import CAPABILITIES
from ferry.storage.confirmation import Comparison, Confirmation, ReadBackPolicy, check_size, confirm
from ferry.storage.control import Control
from ferry.storage.directory import Directory, Folder, walk
from ferry.storage.downloads import Downloads
from ferry.storage.errors import ConditionUnsupported, key_refused
from ferry.storage.object_info import ObjectInfo, Sent, md5_of_etag
from ferry.storage.odd_keys import OddKeys
from ferry.storage.provider import CannotCopy, Digests, Provider, TooLargeAtOnce
from ferry.storage.unfinished import Unfinished
from ferry.storage.uploads import LoggedUploads, OnBegun, PartsUpload, UploadLog

REFUSED_IN_A_ROW = 50  # keys refused one after the other; after more, the refusal counts for all keys


Request = Literal["head", "read", "write"]  # counted apart, since a store may allow one and refuse another


class AlreadyThere(ObjectError):
    """The key exists and `create` was set. ``maybe_ours``: a request of this upload may have created the object."""

    def __init__(self, *, maybe_ours: bool = False) -> None:
        super().__init__(ErrorClass.EXISTS, "the destination already has this key")
        self.maybe_ours = maybe_ours


class Store:
    """An object store with one root: a bucket with a prefix, or a directory."""

    def __init__(
        self,
        uri: str,
        prefix: str,
        kind: str,
        spool_dir: Path,
        folder: Folder | None = None,
        *,
        where: Bucket | None = None,
        provider: Callable[[], Provider] | None = None,
        control: Callable[[], Provider] | None = None,
        access: Access | None = None,
        budget: Budget | None = None,
        pool: Executor | None = None,
        upload_log: UploadLog | None = None,
    ) -> None:
        """``kind`` is the scheme of the URI. ``provider`` and ``control`` make the bucket's clients for objects, in the
        event loop that uses them, and for control requests.
        """
        self.uri = uri
        self.kind = kind
        self.capabilities = CAPABILITIES[kind]
        self.prefix = prefix
        self._where = where
        self.bucket = where.name if where is not None else ""
        self._budget = budget or Budget()
        self._make_provider = provider
        self._make_control = control
        self._access = access
        at = f"{where.owner if where else kind} {access.endpoint_url or '' if access else ''}"
        self.uploads = LoggedUploads(self.bucket, upload_log, self._client, at)
        self._controls: dict[str, Control] = {}
        self._provider: Provider | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the provider
        self._directory = Directory(folder, spool_dir, self._budget, pool) if folder is not None else None
        self._downloads = Downloads(self.bucket, self._client, spool_dir, self._budget, pool)
        self._refused: Counter[Request] = Counter()  # consecutive refusals of single keys
        self._odd_keys = OddKeys(self.path, self._client, self._may_write)
        self._attribute_refusals = AttributeRefusals()
        self.read_back_policy = ReadBackPolicy()

    def path(self, key: str) -> str:
        """Returns the full key in the bucket: prefix and key joined by one slash."""
        return f"{self.prefix}/{key}" if self.prefix else key

    async def put(
        self,
        key: str,
        body: Body,
        attributes: Mapping[str, str],
        *,
        create: bool = False,
        may_lose: bool = True,
    ) -> Sent:
        """Writes one object and returns the store's response.

        With ``create``, raises AlreadyThere if the key exists. A multipart upload checks by HEAD before it starts, and
        again by If-None-Match at its end. If the store refuses a tier or tags, the object is written without them, or
        without ``may_lose`` ObjectError (LOST_ATTRIBUTE) is raised. Later objects do not have them any more.
        """
        try:
            async with self._handling_refusals("write"):
                return await self._put_held(key, body, attributes, create, may_lose)
        except ObjectError as error:
            if create and error.status_code == 501:
                raise ConditionUnsupported from None
            raise

    def without_refused(self, attributes: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Returns the attributes without those that the store has refused, and the names of these."""
        return self._attribute_refusals.split(attributes)

    async def _put_held(
        self, key: str, body: Body, attributes: Mapping[str, str], create: bool, may_lose: bool
    ) -> Sent:
        async def send(held: Mapping[str, str]) -> Sent:
            return await self._put(key, body, held, create)

        async def read() -> dict[str, str]:
            got = await self._client().get(self.path(key), "destination")
            got.response.close()
            return got.attributes

        may_forget = None if self._directory is not None else read
        wait = body.size <= PART_BYTES  # a large one would keep the others waiting for too long

        def again() -> bool:
            return not (isinstance(body, StreamedBody) and body.taken)

        return await self._attribute_refusals.put(
            send, may_forget, attributes, may_lose=may_lose, wait=wait, key=key, again=again
        )

    @contextlib.asynccontextmanager
    async def _handling_refusals(self, kind: Request) -> AsyncIterator[None]:
        """Handles a refusal (Refused, a Fatal) in the block.

        If the destination accepts other keys, only this row fails (ObjectError, FORBIDDEN). After REFUSED_IN_A_ROW such
        rows one after the other the refusal stays Fatal.
        """
        try:
            yield
        except Refused as refused:
            self._refused[kind] += 1
            if self._refused[kind] > REFUSED_IN_A_ROW or not await self._may_write():
                raise
            raise key_refused(refused, kind) from None
        self._refused[kind] = 0

    async def _may_write(self) -> bool:
        """Returns whether the destination accepts other keys."""
        if self._directory is not None:
            return await self._directory.may_write()
        return await Tries().call_async(lambda: self._client().refusal(self.prefix, writing=True)) is None

    async def _put(self, key: str, body: Body, attributes: Mapping[str, str], create: bool) -> Sent:
        if self._directory is not None:
            return Sent(await self._directory.put(key, body, create))
        await self._odd_keys.check(key)
        sent = None
        if body.size <= ONE_PUT_BYTES and not body.start and not isinstance(body, StreamedBody):
            with contextlib.suppress(TooLargeAtOnce), body.upload() as data:
                digests = Digests(body.md5, body.sha256)
                sent = await self._client().put(self.path(key), data, digests, attributes, create=create)
        sent = sent or await self._put_parts(key, body, attributes, create)
        if sent.exists:
            raise AlreadyThere(maybe_ours=sent.sent_twice)
        return sent

    async def _put_parts(self, key: str, body: Body, attributes: Mapping[str, str], create: bool) -> Sent:
        """Uploads a spooled body in parts. LoggedUploads aborts or logs an upload that does not succeed."""
        if create and await self.head(key) is not None:
            raise AlreadyThere
        path = self.path(key)

        async def send(unfinished: Unfinished | None, on_begun: OnBegun) -> Sent:
            upload = PartsUpload(self._client(), path, body, unfinished=unfinished, on_begun=on_begun)
            return await upload.send(attributes, at_once, create=create)

        async with self._budget.upload_in_parts() as at_once:
            return await self.uploads.upload(path, body, attributes, send)

    def can_copy_from(self, source: Store) -> bool:
        """Returns whether this store's client can copy: both are buckets of one server with the same access.

        A copy has the source's tags, so a store that refuses tags refuses copies.
        """
        here, there = self._where, source._where
        same = here is not None and there is not None and (here.owner, self._access) == (there.owner, source._access)
        return same and not self._attribute_refusals.tags

    async def copy_from(
        self,
        source: Store,
        source_key: str,
        key: str,
        *,
        size: int,
        etag: str,
        attributes: Mapping[str, str] = {},
        moved: Callable[[], object] = lambda: None,
    ) -> Confirmation:
        """Copies an object on the server if it still has this ETag. ``size`` and ``etag`` are those of its listing.

        ``attributes`` are those of Provider.copy.

        | both ETags look like MD5s | they are equal | the copy is read back | confirmed by |
        |---|---|---|---|
        | the server gives the MD5s of both, which are equal | | no | digest |
        | yes | yes | no | digest |
        | yes | no | yes: its MD5 is the source's ETag | read back |
        | yes | no | yes: its MD5 is another | not confirmed: CannotCopy |
        | yes | no | no, as ReadBackPolicy decides | size |
        | no | | no | size |

        Also raises CannotCopy if the server does not copy. The caller then reads and writes the bytes.
        """
        await self._odd_keys.check(key)
        listed_as = ObjectInfo(source.path(source_key), size, etag, None)
        sent = await self._client().copy(self.path(key), source.bucket, listed_as, attributes)
        copied, md5, listed = sent.etag, md5_of_etag(sent.etag), md5_of_etag(etag)
        if sent.md5 is not None or (md5 is not None and md5 == listed):
            return Confirmation(Confirmed.DIGEST, copied)
        if (
            md5 is not None
            and listed is not None
            and self.read_back_policy.must_read_back(Comparison.MAYBE_DIFFERENT, key)
        ):
            stored, _ = await self.digest(key, max_bytes=size, algorithm="md5", moved=moved)
            if stored != listed:
                raise CannotCopy
            return Confirmation(Confirmed.READ_BACK, copied)
        await check_size(self, key, size)
        return Confirmation(Confirmed.SIZE, copied)

    async def head(self, key: str, *, side: str = "destination") -> ObjectInfo | None:
        """Returns the object's information, or None if it does not exist (S3 API: HeadObject)."""
        if side == "source":
            return await self._head(key, side)
        async with self._handling_refusals("head"):
            if self._directory is None:
                await self._odd_keys.check(key)
            return await self._head(key, side)

    async def _head(self, key: str, side: str) -> ObjectInfo | None:
        if self._directory is not None:
            return await self._directory.head(key, side)
        found = await self._client().head(self.path(key), side)
        return found and found._replace(key=key)

    async def delete(self, key: str) -> None:
        """Deletes an object. A missing object is not an error. Raises ObjectError and Fatal."""
        if self._directory is not None:
            await self._directory.delete(key)
        else:
            await self._client().delete([self.path(key)], "destination")

    async def get(
        self,
        key: str,
        *,
        max_bytes: int,
        side: str = "source",
        charge: Charge | None = None,
        tags: bool = False,
        may_stream: bool = False,
    ) -> tuple[Body, ObjectInfo, dict[str, str]]:
        """Returns an object's body, information and attributes (ferry/core/attributes.py).

        ``charge`` takes a number of bytes read and returns the seconds to wait (the bandwidth limit). Without ``tags``,
        or if the store hides them, TAGS of an object that has some is "". With ``may_stream`` a body that the spool
        cannot hold is a StreamedBody.
        """
        charge = charge or no_delay
        if self._directory is not None:
            return await self._directory.get(key, max_bytes, side, charge, may_stream=may_stream)
        path = self.path(key)
        return await self._downloads.get(key, path, max_bytes, side, charge, tags=tags, may_stream=may_stream)

    async def get_rest(self, key: str, rest: Rest, charge: Charge) -> Body:
        """Returns the last bytes of an object of a bucket if it has not changed. Raises ObjectError."""
        return await self._downloads.get_rest(self.path(key), rest, charge)

    async def digest(
        self,
        key: str,
        *,
        max_bytes: int,
        algorithm: Algorithm = "sha256",
        moved: Callable[[], object] = lambda: None,
    ) -> tuple[str, ObjectInfo]:
        """Returns the digest and information of an object, which is read in blocks and not kept in memory.

        ``moved`` is called after each block.
        """
        return (await self.digest_and_attributes(key, max_bytes=max_bytes, algorithm=algorithm, moved=moved))[:2]

    async def digest_and_attributes(
        self,
        key: str,
        *,
        max_bytes: int,
        algorithm: Algorithm = "sha256",
        moved: Callable[[], object] = lambda: None,
    ) -> tuple[str, ObjectInfo, dict[str, str]]:
        """Returns what :meth:`digest` does, and the attributes; TAGS of an object that has some is ""."""
        async with self._handling_refusals("read"):
            if self._directory is not None:
                return *await self._directory.digest(key, max_bytes, algorithm, moved), {}
            return await self._downloads.digest(key, self.path(key), max_bytes, algorithm, moved)

    async def tags(self, key: str) -> str | None:
        """Returns the tags of an object at the destination; "" for none, None if the store hides them."""
        return "" if self._directory is not None else await self._downloads.tags(self.path(key), "destination")

    def control(self, side: str = "destination") -> Control:
        """Returns the client for control requests. It blocks, so do not use it in an event loop."""
        if side not in self._controls:
            assert self._make_control is not None
            self._controls[side] = Control(self._make_control, side=side)
        return self._controls[side]

    def _client(self) -> Provider:
        """Returns the client of a bucket in this event loop, created on first use."""
        loop = asyncio.get_running_loop()
        if self._provider is None or self._loop is not loop:
            assert self._make_provider is not None
            self._provider, self._loop = self._make_provider(), loop
        return self._provider

    @cached_property
    def in_byte_order(self) -> bool:
        """Whether listings are sorted by the keys' bytes."""
        return self._directory is None and self.control().in_byte_order()

    @property
    def connections_opened(self) -> int:
        """Returns the number of connections that the client has opened."""
        return self._provider.connections_opened if self._provider is not None else 0

    async def clean(self) -> None:
        """Deletes unfinished files and aborts uploads of killed runs of this job. No other run of it may be active.

        Uploads stay that ``uploads.find`` has found.
        """
        if self._directory is not None:
            await self._directory.clean()
        else:
            await self.uploads.clean(self.prefix)

    async def disconnect(self) -> None:
        """Closes the connections of this event loop, so that another loop can use the store."""
        if self._provider is not None:
            await self._provider.close()
            self._provider = None

    async def close(self) -> None:
        """Closes connections and the directory. The store cannot be used afterwards."""
        if self._directory is not None:
            await asyncio.to_thread(self._directory.folder.close)
        await self.disconnect()

    def list(self, *, start_after: str | None = None, side: str = "destination") -> Iterator[list[ObjectInfo]]:
        """Yields pages of the objects under the prefix.

        ``start_after`` is a key of a bucket; a directory ignores it and has no fixed order.
        """
        if self._directory is not None:
            yield from walk(self._directory.folder.root, links=side == "source")
            return
        below = f"{self.prefix}/" if self.prefix else ""
        for page in self.control(side).pages(below, below + start_after if start_after is not None else None):
            yield [found._replace(key=found.key[len(below) :]) for found in page]

    async def confirm(self, key: str, body: Body, sent: Sent) -> Confirmation:
        """Confirms an upload (confirmation.py); a directory by size alone. Raises ObjectError (UPLOAD_UNCONFIRMED).

        A resumed one whose note others may have written is read back.
        """
        if self.kind == "file":
            await check_size(self, key, body.size)
            return Confirmation(Confirmed.SIZE, sent.etag)
        read_back = body.start > 0 and self.uploads.shared
        return await confirm(self, self.read_back_policy, key, body, sent, read_back=read_back)
