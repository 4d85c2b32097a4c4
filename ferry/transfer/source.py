"""Reading a row's source, over HTTP or from one of the job's roots; looking whether it changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ferry.core import Body, ErrorClass, KnownCopy, ObjectError, Revalidate, Row, told_by_head
from ferry.http import Fetched, NotModified, Origin, media_type
from ferry.ratelimit import Permit
from ferry.storage import ObjectInfo, Store


@dataclass(slots=True)
class Fetch:
    """A body with what its source said of it."""

    body: Body
    content_type: str | None
    etag: str | None
    last_modified: str | None
    requests: int
    attributes: dict[str, str] = field(default_factory=dict)  # of bucket sources: encoding and metadata
    length_known: bool = True  # as http's Fetched has it


class Sources:
    """Both kinds of them."""

    def __init__(self, origin: Origin, roots: Sequence[tuple[str, Store]], max_bytes: int) -> None:
        self._origin = origin
        self.roots = roots
        self._max_bytes = max_bytes

    async def fetch(self, row: Row, place: Permit) -> Fetch:
        """The object. Raises ObjectError."""
        if _is_web(row):
            return _fetch(await self._origin.get(row.source, place.charge))
        store, key = self._at(row)
        body, found, attributes = await store.get(key, max_bytes=self._max_bytes, charge=place.charge)
        kind = media_type(attributes.pop("Content-Type", None))
        return Fetch(body, kind, found.etag, _date(found), 1, attributes)

    async def look(self, row: Row, known: KnownCopy, place: Permit) -> Fetch | NotModified:
        """The object, or what its source said where that tells that it is the known one still. Raises ObjectError."""
        asked = 0
        if known.revalidate in (Revalidate.HEAD, Revalidate.HEAD_SIZE):
            told = await self._head(row)
            if told is not None:
                if told_by_head(known, told.size, told.etag, told.last_modified):
                    return told
                asked = told.requests
        elif known.revalidate is Revalidate.CONDITIONAL_GET and _is_web(row):
            got = await self._origin.get_if(row.source, known.etag, known.last_modified, place.charge)
            return got if isinstance(got, NotModified) else _fetch(got)
        fetch = await self.fetch(row, place)
        fetch.requests += asked
        return fetch

    async def _head(self, row: Row) -> NotModified | None:
        """None where it is not to be had that way: an address that is signed for GET, a server that knows no HEAD."""
        if not _is_web(row):
            store, key = self._at(row)
            found = await store.head(key, side="source")
            return None if found is None else NotModified(found.size, found.etag, _date(found), 1)
        try:
            return await self._origin.head(row.source)
        except ObjectError as error:
            status = error.status_code or 0
            if status == 501 or (400 <= status < 500 and status not in (408, 425, 429)):
                return None
            raise

    def _at(self, row: Row) -> tuple[Store, str]:
        for root, store in self.roots:
            if row.source.startswith(root):
                return store, row.source[len(root) :]
        raise ObjectError(ErrorClass.BAD_URL, "the address lies under none of the job's `source.roots`")


def _fetch(got: Fetched) -> Fetch:
    return Fetch(got.body, got.content_type, got.etag, got.last_modified, got.requests, length_known=got.length_known)


def _date(found: ObjectInfo) -> str | None:
    return found.last_modified.isoformat() if found.last_modified else None


def _is_web(row: Row) -> bool:
    return row.source[:8].lower().startswith(("http://", "https://"))
