"""A bounded table of the objects that this process has stored, by the digests of their bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

from ferry.core import Row, TransferResult
from ferry.images import Kind as ImageKind
from ferry.job import finish_key
from ferry.storage import ObjectInfo, same_etag

REMEMBERED = 50_000  # objects; about 60 MB of memory


@dataclass(slots=True)
class StoredObject:
    """An object that Ferry has written and confirmed for a row of the job.

    ``result`` has its key, size, digests and ETag, and as ``bytes_read_at`` a time after it was written. ``kind`` is
    what its bytes show. ``seen_at`` is when the store last said that it is there, by time.monotonic().
    """

    result: TransferResult
    attributes: Mapping[str, str]
    kind: ImageKind | None
    seen_at: float

    def may_be(self, row: Row) -> bool:
        """Returns whether nothing that the manifest says of the row's bytes differs from this object's.

        | the manifest has | it is that of the object | result |
        |---|---|---|
        | a SHA-256 or an MD5 | all that it has, and the size if it has one | may be |
        | a SHA-256 or an MD5 | one of them, or the size, differs | is not |
        | no digest | | is not |
        """
        stored = self.result
        said = ((row.sha256, stored.sha256), (row.md5, stored.md5), (row.size, stored.size))
        return bool(row.sha256 or row.md5) and all(claim in (None, actual) for claim, actual in said)

    def is_what_the_row_gets(self, row: Row, attributes: Mapping[str, str] | None) -> bool:
        """Returns whether the row's object would have the same attributes, as far as is known before its download.

        ``attributes`` are those of Carrier.before_fetch. A type that the bytes do not show is that of the manifest, or
        the one in the source's response.
        """
        mime = self.kind.mime if self.kind is not None else row.content_type
        return attributes is not None and mime is not None and self.attributes == {**attributes, "Content-Type": mime}

    def key_for(self, row: Row) -> str:
        """Returns the row's key, if its bytes are those of this object."""
        if not row.deferred_key:
            return row.key
        return finish_key(row.key, sha256=self.result.sha256 or "", ext=self.kind.ext if self.kind else "bin")

    def is_intact(self, found: ObjectInfo | None) -> bool:
        """Returns whether ``found``, which has this object's key, is still this object by its size and ETag."""
        if found is None or not found.etag or not self.result.dest_etag:
            return False
        return found.size == self.result.size and same_etag(found.etag, self.result.dest_etag)


class StoredObjects:
    """The objects that were stored or found last. Only for the event loop's thread."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._objects: OrderedDict[str, StoredObject] = OrderedDict()  # by SHA-256
        self._sha256_of: dict[str, str] = {}  # by MD5; "" if objects with different SHA-256s have it
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._objects)

    def add(self, stored: StoredObject) -> None:
        """Remembers an object, and forgets the one that was stored or found the longest time ago."""
        sha256, md5 = stored.result.sha256, stored.result.md5
        if sha256 is None or md5 is None:
            return
        self._objects[sha256] = stored
        self._objects.move_to_end(sha256)
        self._sha256_of[md5] = sha256 if self._sha256_of.get(md5, sha256) == sha256 else ""
        if len(self._objects) > self._most:
            _, oldest = self._objects.popitem(last=False)
            self._sha256_of.pop(oldest.result.md5 or "", None)

    def find(self, sha256: str | None, md5: str | None = None) -> StoredObject | None:
        """Returns the object with this SHA-256, or without one the object with this MD5."""
        found = self._objects.get(sha256 or self._sha256_of.get(md5 or "", ""))
        if found is not None and found.result.sha256:
            self._objects.move_to_end(found.result.sha256)
        return found

    def forget(self, stored: StoredObject) -> None:
        """Forgets an object that is not at the destination any more."""
        if self._objects.get(stored.result.sha256 or "") is stored:
            del self._objects[stored.result.sha256 or ""]
            self._sha256_of.pop(stored.result.md5 or "", None)

    @contextlib.asynccontextmanager
    async def first(self, sha256: str) -> AsyncIterator[None]:
        """Delays the block while another row stores the same bytes for the first time."""
        lock = self._locks.setdefault(sha256, asyncio.Lock())
        async with contextlib.AsyncExitStack() as held:
            if sha256 not in self._objects:
                await held.enter_async_context(lock)
                if sha256 in self._objects:
                    await held.aclose()
            yield
