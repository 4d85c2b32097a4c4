"""Access to a row's source, over HTTP or under one of the job's roots: fetch, and recheck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ferry.core import Body, ErrorClass, KnownCopy, ObjectError, Revalidate, Row, head_matches
from ferry.http import Fetched, NotModified, Origin, Rest, media_type
from ferry.job import needs_sha256
from ferry.ratelimit import Permit
from ferry.storage import ObjectInfo, Store, is_odd, same_etag


@dataclass(slots=True)
class Fetch:
    """A body with the metadata of its source."""

    body: Body
    content_type: str | None
    etag: str | None
    last_modified: str | None
    requests: int
    attributes: dict[str, str] = field(default_factory=dict)  # of the source, without its type
    length_known: bool = True  # as http's Fetched has it
    version: str | None = None  # by which a part of these bytes can be asked for; None: it cannot


class Sources:
    """The sources of a job: web servers, and stores under its roots."""

    def __init__(self, origin: Origin, roots: Sequence[tuple[str, Store]], max_bytes: int, *, tags: bool) -> None:
        """``tags``: whether the tags of objects in stores are wanted."""
        self._tags = tags
        self._origin = origin
        self.roots = roots
        self._max_bytes = max_bytes

    async def fetch(self, row: Row, permit: Permit) -> Fetch:
        """Returns the object, or a StreamedBody if the spool cannot hold it. Raises ObjectError."""
        may_stream = may_be_streamed(row)
        if is_web(row):
            return _fetch(await self._origin.get(row.source, permit.charge, may_stream=may_stream))
        store, key = self._store_of(row)
        body, found, attributes = await store.get(
            key, max_bytes=self._max_bytes, charge=permit.charge, tags=self._tags, may_stream=may_stream
        )
        if is_odd(key) and row.etag and found.etag and not same_etag(row.etag, found.etag):
            body.discard()  # a proxy such as nginx asks for `a/b` in place of `a//b`
            text = "the source sends another object than the one that it lists under this key"
            raise ObjectError(ErrorClass.DIGEST_MISMATCH, text)
        kind = media_type(attributes.pop("Content-Type", None))
        return Fetch(body, kind, found.etag, _date(found), 1, attributes, version=found.version)

    async def fetch_rest(self, row: Row, rest: Rest, permit: Permit) -> Fetch:
        """Returns the last bytes of an object that has not changed. Raises ObjectError, also if it has."""
        if is_web(row):
            return _fetch(await self._origin.get_rest(row.source, rest, permit.charge))
        store, key = self._store_of(row)
        return Fetch(await store.get_rest(key, rest, permit.charge), None, None, None, 1)

    async def recheck(self, row: Row, known: KnownCopy, permit: Permit) -> Fetch | NotModified:
        """Returns the object, or the source's answer if that shows that the copy is current. Raises ObjectError."""
        head_requests = 0
        if known.revalidate in (Revalidate.HEAD, Revalidate.HEAD_SIZE):
            answer = await self._head(row)
            if answer is not None:
                if head_matches(known, answer.size, answer.etag, answer.last_modified):
                    return answer
                head_requests = answer.requests
        elif known.revalidate is Revalidate.CONDITIONAL_GET and is_web(row):
            got = await self._origin.get_if(
                row.source, known.etag, known.last_modified, permit.charge, may_stream=may_be_streamed(row)
            )
            return got if isinstance(got, NotModified) else _fetch(got)
        fetch = await self.fetch(row, permit)
        fetch.requests += head_requests
        return fetch

    async def _head(self, row: Row) -> NotModified | None:
        """Returns the answer to a HEAD, or None if the source refuses it.

        A URL may be signed for GET only, and a server may not support HEAD.
        """
        if not is_web(row):
            store, key = self._store_of(row)
            found = await store.head(key, side="source")
            return None if found is None else NotModified(found.size, found.etag, _date(found), 1)
        try:
            return await self._origin.head(row.source)
        except ObjectError as error:
            status = error.status_code or 0
            if status == 501 or (400 <= status < 500 and status not in (408, 425, 429)):
                return None
            raise

    def _store_of(self, row: Row) -> tuple[Store, str]:
        for root, store in self.roots:
            if row.source.startswith(root):
                return store, row.source[len(root) :]
        raise ObjectError(ErrorClass.BAD_URL, "the address is not under any of the job's `source.roots`: add its root")


def _fetch(got: Fetched) -> Fetch:
    return Fetch(
        got.body, got.content_type, got.etag, got.last_modified, got.requests, got.attributes, got.length_known,
        version=got.version,
    )  # fmt: skip


def _date(found: ObjectInfo) -> str | None:
    return found.last_modified.isoformat() if found.last_modified else None


def is_web(row: Row) -> bool:
    """Returns whether a row's source is an HTTP origin, not a store."""
    return row.source[:8].lower().startswith(("http://", "https://"))


def may_be_streamed(row: Row) -> bool:
    """Returns whether a row's object can be written while it comes: its key does not depend on all of its bytes."""
    return not (row.deferred_key and needs_sha256(row.key))
