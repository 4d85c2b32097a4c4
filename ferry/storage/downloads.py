"""Downloads from a bucket: complete bodies, and digests of bodies that are not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import obstore

from ferry.core import Body, Budget, Charge, ErrorClass, ObjectError, no_delay, pace, whole_body
from ferry.http import Algorithm, Arriving, Hashing, Reader, Response, printable_header, stream_body, stream_plain
from ferry.storage.errors import from_store_http, mapped_errors
from ferry.storage.object_info import ObjectInfo
from ferry.storage.s3 import BucketHttp, NotPlain, attributes_of, last_modified

BLOCK_BYTES = 256 * 1024  # that obstore's client reads at a time; its default is 10 MiB


class Downloads:
    """Downloads objects of one bucket, with Ferry's HTTP client if there is one. Raises ObjectError and Fatal."""

    def __init__(
        self,
        bucket: str,
        backend: Any,
        http: Callable[[], BucketHttp | None],
        spool_dir: Path,
        budget: Budget,
        pool: Executor | None,
    ) -> None:
        """The memory budget counts bodies under ``bucket``, as it counts those of a web origin under their host."""
        self._bucket = bucket
        self._backend = backend
        self._http = http
        self._spool_dir = spool_dir
        self._budget = budget
        self._pool = pool

    async def get(
        self, key: str, path: str, max_bytes: int, side: str, charge: Charge
    ) -> tuple[Body, ObjectInfo, dict[str, str]]:
        """Returns the body of the object at ``path``, its information under the name ``key``, and its attributes."""
        if (http := self._http()) is not None:
            with contextlib.suppress(NotPlain):
                response = await http.get(path, side)
                reader = Reader(self._spool_dir, self._budget, self._pool, max_bytes)
                with _closing_on_error(response, side):
                    body = await reader.body(response, charge, self._bucket, decode=False)
                return body, _object_info(key, body.size, response), attributes_of(response.headers)
        with mapped_errors(side):
            result = await obstore.get_async(self._backend, path)
            found = _checked_info(key, result.meta, max_bytes)
            body = await self._body(result, found.size, charge)
        if body.size != found.size:
            body.discard()
            raise _truncated(body.size, found)
        return body, found, {str(name): str(value) for name, value in result.attributes.items()}

    async def digest(
        self, key: str, path: str, max_bytes: int, algorithm: Algorithm, moved: Callable[[], object]
    ) -> tuple[str, ObjectInfo]:
        """Returns the digest and information of an object. ``moved`` is called after each block.

        It takes no memory from the budget, since only one block is held at a time.
        """
        side = "destination"
        hashing = Hashing(self._pool, algorithm, moved)
        if (http := self._http()) is not None:
            with contextlib.suppress(NotPlain):
                response = await http.get(path, side)
                with _closing_on_error(response, side):
                    await stream_body(response, hashing, max_bytes, no_delay, decode=False)
                return hashing.digest, _object_info(key, hashing.size, response)
        with mapped_errors(side):
            result = await obstore.get_async(self._backend, path)
            found = _checked_info(key, result.meta, max_bytes)
            await stream_plain(result.stream(BLOCK_BYTES), hashing, no_delay)
        if hashing.size != found.size:
            raise _truncated(hashing.size, found)
        return hashing.digest, found

    async def _body(self, result: Any, size: int, charge: Charge) -> Body:
        share = await self._budget.take(self._bucket, size)
        if size > self._budget.small_bytes:
            arriving = Arriving(self._spool_dir, self._budget, self._pool, self._bucket, share)
            try:
                await stream_plain(result.stream(BLOCK_BYTES), arriving, charge)
                return arriving.finish()
            except BaseException:
                arriving.abandon()
                raise
        try:
            body = await whole_body(bytes(await result.bytes_async()), self._pool)
            await pace(charge, body.size)
        except BaseException:
            share.end()
            raise
        body.share = share
        return body


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


def _object_info(key: str, size: int, response: Response) -> ObjectInfo:
    return ObjectInfo(key, size, printable_header(response.headers.get("ETag")), last_modified(response.headers))


def _checked_info(key: str, meta: Any, max_bytes: int) -> ObjectInfo:
    """Returns the object's information from the response header. Raises ObjectError (TOO_LARGE) above ``max_bytes``."""
    found = ObjectInfo(key, int(meta["size"]), meta["e_tag"], meta["last_modified"])
    if found.size > max_bytes:
        raise ObjectError(ErrorClass.TOO_LARGE, f"{found.size:,} bytes are more than `max_bytes` ({max_bytes:,})")
    return found


def _truncated(size: int, found: ObjectInfo) -> ObjectError:
    return ObjectError(ErrorClass.TRUNCATED, f"{size:,} of {found.size:,} bytes arrived")
