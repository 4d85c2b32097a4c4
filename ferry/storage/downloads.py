"""Downloads from a bucket: complete bodies, and digests of bodies that are not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path

from ferry.core import Body, Budget, Charge, no_delay
from ferry.http import Algorithm, Hashing, Reader, Response, stream_body
from ferry.storage.errors import from_store_http
from ferry.storage.object_info import ObjectInfo
from ferry.storage.provider import Provider


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

    async def get(
        self, key: str, path: str, max_bytes: int, side: str, charge: Charge
    ) -> tuple[Body, ObjectInfo, dict[str, str]]:
        """Returns the body of the object at ``path``, its information under the name ``key``, and its attributes."""
        got = await self._provider().get(path, side)
        reader = Reader(self._spool_dir, self._budget, self._pool, max_bytes)
        with _closing_on_error(got.response, side):
            body = await reader.body(got.response, charge, self._bucket, decode=False)
        return body, got.info._replace(key=key, size=body.size), got.attributes

    async def digest(
        self, key: str, path: str, max_bytes: int, algorithm: Algorithm, moved: Callable[[], object]
    ) -> tuple[str, ObjectInfo]:
        """Returns the digest and information of an object. ``moved`` is called after each block.

        It takes no memory from the budget, since only one block is held at a time.
        """
        side = "destination"
        hashing = Hashing(self._pool, algorithm, moved)
        got = await self._provider().get(path, side)
        with _closing_on_error(got.response, side):
            await stream_body(got.response, hashing, max_bytes, no_delay, decode=False)
        return hashing.digest, got.info._replace(key=key, size=hashing.size)


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
