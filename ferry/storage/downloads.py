"""Downloads from a bucket: complete bodies, and digests of bodies that are not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from ferry.core import TAGS, Body, Budget, Charge, ObjectError, Refused, no_delay
from ferry.http import Algorithm, Hashing, Reader, Response, Rest, stream_body
from ferry.storage.errors import from_store_http
from ferry.storage.object_info import ObjectInfo
from ferry.storage.provider import Provider

_HIDDEN = (401, 403, 405, 501)


class Downloads:
    """Downloads objects of one bucket. Raises ObjectError and Fatal."""

    def __init__(
        self,
        bucket: str,
        provider: Callable[[], Provider],
        spool_dir: Path,
        budget: Budget,
        pool: Executor | None,
    ) -> None:
        """The memory budget counts bodies under ``bucket``, as it counts those of a web origin under their host."""
        self._bucket = bucket
        self._provider = provider
        self._spool_dir = spool_dir
        self._budget = budget
        self._pool = pool
        self._hides_tags = False  # the store has refused to show tags

    async def get(
        self, key: str, path: str, max_bytes: int, side: str, charge: Charge, *, tags: bool, may_stream: bool
    ) -> tuple[Body, ObjectInfo, dict[str, str]]:
        """Returns the body of the object at ``path``, its information under the name ``key``, and its attributes.

        Without ``tags``, or if the store does not show them, an object that has some has TAGS without a text. With
        ``may_stream`` a body that the spool cannot hold is a StreamedBody.
        """
        got = await self._provider().get(path, side)
        reader = Reader(self._spool_dir, self._budget, self._pool, max_bytes)
        with _closing_on_error(got.response, side):
            streamed = partial(from_store_http, side=side) if may_stream else None
            body = await reader.body(got.response, charge, self._bucket, decode=False, streamed=streamed)
        if got.tagged:
            try:
                got.attributes[TAGS] = (await self.tags(path, side) if tags else None) or ""
            except BaseException:
                body.discard()
                raise
        return body, got.info._replace(key=key, size=body.size), got.attributes

    async def tags(self, path: str, side: str) -> str | None:
        """Returns an object's tags; "" for none, None if the store does not show them to these credentials."""
        if self._hides_tags:
            return None
        try:
            return await self._provider().tags(path, side)
        except (ObjectError, Refused) as error:
            if not isinstance(error, Refused) and error.status_code not in _HIDDEN:
                raise
            self._hides_tags = True  # each object would be refused
            return None

    async def get_rest(self, path: str, rest: Rest, charge: Charge) -> Body:
        """Returns the bytes from ``rest.start`` on, with the digests of their parts."""
        side = "source"
        got = await self._provider().get(path, side, start=rest.start, if_version=rest.version)
        reader = Reader(self._spool_dir, self._budget, self._pool, rest.size)
        with _closing_on_error(got.response, side):
            return await reader.body(got.response, charge, self._bucket, decode=False, part_bytes=rest.part_bytes)

    async def digest(
        self, key: str, path: str, max_bytes: int, algorithm: Algorithm, moved: Callable[[], object]
    ) -> tuple[str, ObjectInfo, dict[str, str]]:
        """Returns the digest, information and attributes of an object. ``moved`` is called after each block.

        TAGS is there, without a text, for an object that has tags. It takes no memory from the budget, since only one
        block is held at a time.
        """
        side = "destination"
        hashing = Hashing(self._pool, algorithm, moved)
        got = await self._provider().get(path, side)
        with _closing_on_error(got.response, side):
            await stream_body(got.response, hashing, max_bytes, no_delay, decode=False)
        if got.tagged:
            got.attributes[TAGS] = ""
        return hashing.digest, got.info._replace(key=key, size=hashing.size), got.attributes


@contextlib.contextmanager
def _closing_on_error(response: Response, side: str) -> Iterator[None]:
    """Closes the response and maps the error if reading its body in the block fails."""
    try:
        yield
    except BaseException as exc:
        response.close()
        if isinstance(exc, Exception):
            raise from_store_http(exc, side) from None
        raise
