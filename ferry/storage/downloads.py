"""Objects of a bucket on their way here: whole bodies, and digests of bytes of which nothing is kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import obstore

from ferry.core import Body, Budget, Charge, ErrorClass, ObjectError, no_delay, whole_body
from ferry.http import Algorithm, Arriving, Hashing, Reader, Response, printable_header, stream_body, stream_plain
from ferry.storage.errors import from_store_http, mapped_errors
from ferry.storage.object_info import ObjectInfo
from ferry.storage.s3 import BucketHttp, NotPlain, attributes_of, last_modified

PIECE_BYTES = 256 * 1024  # of what obstore's client reads; without it 10 MiB


class Downloads:
    """One bucket's, the short way where there is one. Raises ObjectError and Fatal."""

    def __init__(
        self,
        bucket: str,
        backend: Any,
        http: Callable[[], BucketHttp | None],
        spool_dir: Path,
        budget: Budget,
        pool: Executor | None,
    ) -> None:
        """Bodies are charged to ``bucket``, as those of web origins are to their host."""
        self._bucket = bucket
        self._backend = backend
        self._http = http
        self._spool_dir = spool_dir
        self._budget = budget
        self._pool = pool

    async def get(
        self, key: str, path: str, max_bytes: int, side: str, charge: Charge
    ) -> tuple[Body, ObjectInfo, dict[str, str]]:
        """The object at ``path``, which is called ``key``, and its attributes."""
        if (http := self._http()) is not None:
            with contextlib.suppress(NotPlain):
                response = await http.get(path, side)
                reader = Reader(self._spool_dir, self._budget, self._pool, max_bytes)
                with _ended(response, side):
                    body = await reader.body(response, charge, self._bucket, decode=False)
                return body, _found(key, body.size, response), attributes_of(response.headers)
        with mapped_errors(side):
            result = await obstore.get_async(self._backend, path)
            found = _shown(key, result.meta, max_bytes)
            body = await self._body(result, found.size, charge)
        if body.size != found.size:
            body.discard()
            raise _cut(body.size, found)
        return body, found, {str(name): str(value) for name, value in result.attributes.items()}

    async def digest(
        self, key: str, path: str, max_bytes: int, algorithm: Algorithm, moved: Callable[[], object]
    ) -> tuple[str, ObjectInfo]:
        """The digest of the object's bytes. It takes nothing of the budget: no more than a piece is here at once.
        ``moved`` hears of each piece."""
        side = "destination"
        hashing = Hashing(self._pool, algorithm, moved)
        if (http := self._http()) is not None:
            with contextlib.suppress(NotPlain):
                response = await http.get(path, side)
                with _ended(response, side):
                    await stream_body(response, hashing, max_bytes, no_delay, decode=False)
                return hashing.digest, _found(key, hashing.size, response)
        with mapped_errors(side):
            result = await obstore.get_async(self._backend, path)
            found = _shown(key, result.meta, max_bytes)
            await stream_plain(result.stream(PIECE_BYTES), hashing, no_delay)
        if hashing.size != found.size:
            raise _cut(hashing.size, found)
        return hashing.digest, found

    async def _body(self, result: Any, size: int, charge: Charge) -> Body:
        share = await self._budget.take(self._bucket, size)
        if size > self._budget.small_bytes:
            arriving = Arriving(self._spool_dir, self._budget, self._pool, self._bucket, share)
            try:
                await stream_plain(result.stream(PIECE_BYTES), arriving, charge)
                return arriving.finish()
            except BaseException:
                arriving.abandon()
                raise
        try:
            body = await whole_body(bytes(await result.bytes_async()), self._pool)
            if delay_s := charge(body.size):
                await asyncio.sleep(delay_s)
        except BaseException:
            share.end()
            raise
        body.share = share
        return body


@contextlib.contextmanager
def _ended(response: Response, side: str) -> Iterator[None]:
    """The answer's body is read in the block; an error gives it up."""
    try:
        yield
    except BaseException as exc:
        response.close()
        if isinstance(exc, Exception):
            raise from_store_http(exc, side) from None
        raise


def _found(key: str, size: int, response: Response) -> ObjectInfo:
    return ObjectInfo(key, size, printable_header(response.headers.get("ETag")), last_modified(response.headers))


def _shown(key: str, meta: Any, max_bytes: int) -> ObjectInfo:
    """What the answer's header says of the object. Raises ObjectError where that is too large."""
    found = ObjectInfo(key, int(meta["size"]), meta["e_tag"], meta["last_modified"])
    if found.size > max_bytes:
        raise ObjectError(ErrorClass.TOO_LARGE, f"{found.size:,} bytes are more than max_bytes ({max_bytes:,})")
    return found


def _cut(size: int, found: ObjectInfo) -> ObjectError:
    return ObjectError(ErrorClass.TRUNCATED, f"{size:,} of {found.size:,} bytes arrived")
