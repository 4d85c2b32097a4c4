"""Downloads from a bucket: complete bodies, and digests of bodies that are not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path

from ferry.core import Body, Budget, Charge, no_delay
from ferry.http import Algorithm, Hashing, Reader, Response, printable_header, stream_body
from ferry.storage.errors import from_store_http
from ferry.storage.object_info import ObjectInfo
from ferry.storage.s3 import BucketHttp, attributes_of, last_modified


class Downloads:
    """Downloads objects of one bucket. Raises ObjectError and Fatal."""

    def __init__(
        self,
        bucket: str,
        http: Callable[[], BucketHttp],
        spool_dir: Path,
        budget: Budget,
        pool: Executor | None,
    ) -> None:
        """The memory budget counts bodies under ``bucket``, as it counts those of a web origin under their host."""
        self._bucket = bucket
        self._http = http
        self._spool_dir = spool_dir
        self._budget = budget
        self._pool = pool

    async def get(
        self, key: str, path: str, max_bytes: int, side: str, charge: Charge
    ) -> tuple[Body, ObjectInfo, dict[str, str]]:
        """Returns the body of the object at ``path``, its information under the name ``key``, and its attributes."""
        response = await self._http().get(path, side)
        reader = Reader(self._spool_dir, self._budget, self._pool, max_bytes)
        with _closing_on_error(response, side):
            body = await reader.body(response, charge, self._bucket, decode=False)
        return body, object_info(key, body.size, response), attributes_of(response.headers)

    async def digest(
        self, key: str, path: str, max_bytes: int, algorithm: Algorithm, moved: Callable[[], object]
    ) -> tuple[str, ObjectInfo]:
        """Returns the digest and information of an object. ``moved`` is called after each block.

        It takes no memory from the budget, since only one block is held at a time.
        """
        side = "destination"
        hashing = Hashing(self._pool, algorithm, moved)
        response = await self._http().get(path, side)
        with _closing_on_error(response, side):
            await stream_body(response, hashing, max_bytes, no_delay, decode=False)
        return hashing.digest, object_info(key, hashing.size, response)


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


def object_info(key: str, size: int, response: Response) -> ObjectInfo:
    """Returns what a response's header says about the object, under the name ``key``."""
    return ObjectInfo(key, size, printable_header(response.headers.get("ETag")), last_modified(response.headers))
