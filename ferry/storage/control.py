"""Control requests to a bucket: listings, deletions, preflight and the files of a state.

Each request has up to five attempts. The client blocks, and is thread-safe: the requests are sent in a loop of their
own (docs/decisions/0031).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ferry.core import PART_BYTES, ErrorClass, Fatal, ObjectError, Parts, Tries, file_body
from ferry.storage.errors import from_store_http
from ferry.storage.loop_thread import wait_for
from ferry.storage.object_info import ObjectInfo
from ferry.storage.provider import BucketSettings, Digests, Page, Provider
from ferry.storage.uploads import PartsUpload

T = TypeVar("T")
KEYS_PER_DELETE = 1000
_NO_PROGRESS = (
    "the {side}'s listing does not advance: its token for the next page is missing or repeats. "
    "Check that `endpoint_url` lists objects as its provider does"
)


class Control:
    """Client for one bucket. Raises ObjectError and Fatal, which name ``side``: destination, source or state."""

    def __init__(self, make: Callable[[], Provider], *, side: str = "destination", tries: Tries = Tries()) -> None:
        """``make`` is called once, in the loop for control requests."""
        self._make = make
        self._side = side
        self._tries = tries
        self._made: Provider | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def _ask(self, work: Callable[[Provider], Coroutine[Any, Any, T]]) -> T:
        """Returns the result of a request."""

        async def once() -> T:
            return await work(self._provider())

        return self._tries(lambda: wait_for(once()))

    def _provider(self) -> Provider:
        loop = asyncio.get_running_loop()  # only the one loop of loop_thread.py comes here; a fork has another
        if self._made is None or self._loop is not loop:
            self._made, self._loop = self._make(), loop
        return self._made

    # --- the bucket

    def endpoint(self) -> str:
        """Returns the endpoint, for messages."""
        return self._get(lambda provider: provider.endpoint)

    def in_byte_order(self) -> bool:
        """Returns whether listings are sorted by the bytes of the keys."""
        return self._get(lambda provider: provider.in_byte_order)

    def _get(self, value: Callable[[Provider], T]) -> T:

        async def once() -> T:
            return value(self._provider())

        return wait_for(once())

    def refusal(self, prefix: str, *, writing: bool, attributes: Mapping[str, str] = {}) -> str | None:
        """Returns why the bucket cannot be used, as the end of a sentence, or None."""
        return self._ask(lambda provider: provider.refusal(prefix, writing=writing, attributes=attributes))

    def settings(self, key: str, data: bytes) -> BucketSettings:
        """Returns what the bucket says of itself, also by writing ``data`` to ``key``."""
        return self._ask(lambda provider: provider.settings(key, data))

    def pages(self, prefix: str, start_after: str | None = None) -> Iterator[list[ObjectInfo]]:
        """Yields pages of the objects whose full keys begin with ``prefix``.

        Some S3 stores mark a truncated listing as complete. So after the last page one more request starts after its
        last key. ``start_after`` is a full key. Raises ObjectError if a listing does not advance.
        """
        after, token = start_after, None
        first: str | None = None
        more_expected = False  # the previous page had a token
        seen_tokens: set[int] = set()  # hashes of the tokens used: 100 million keys have 100,000 tokens
        while True:
            # with a token `after` is what the first page had: a store may list in another order than that of the bytes
            page = self._page(prefix, start_after if token else after, token or None)
            objects = page.objects
            if not token and objects and objects[0].key == after:  # some stores include the start-after key
                objects = objects[1:]
            keys = [each.key for each in objects]
            restarted = not token and first is not None and keys[:1] == [first]
            if token:
                seen_tokens.add(hash(token))
            else:
                seen_tokens.clear()
            stuck = more_expected and (restarted or hash(page.token) in seen_tokens)
            if stuck or (page.token == "" and not keys):
                raise ObjectError(ErrorClass.STORE_ERROR, _NO_PROGRESS.format(side=self._side))
            # a store that ignores start-after lists from its first key
            if restarted or not (keys or page.token):
                return
            if keys:
                first = first or keys[0]
                after = keys[-1]
                yield objects
            if page.token is None and not self._get(lambda provider: provider.cuts_listings):
                return
            more_expected, token = page.token is not None, page.token

    def _page(self, prefix: str, after: str | None, token: str | None) -> Page:
        return self._ask(lambda provider: provider.page(prefix, self._side, after=after, token=token))

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects. A missing object is not an error."""
        left = list(keys)
        for first in range(0, len(left), KEYS_PER_DELETE):
            some = left[first : first + KEYS_PER_DELETE]
            self._ask(lambda provider, some=some: provider.delete(some, self._side))  # type: ignore[misc]

    def abort(self, prefix: str) -> None:
        """Aborts all unfinished uploads to keys that begin with ``prefix``."""

        async def once(provider: Provider) -> None:
            async for key, upload in provider.uploads(prefix):
                await provider.abort(key, upload)

        self._ask(once)

    # --- files of a state

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Returns a small object's bytes and its version, or None if it does not exist."""
        return self._unless_missing(lambda: self._ask(lambda provider: provider.read(key)), None)

    def write(self, key: str, data: bytes) -> None:
        """Writes an object."""
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        digests = Digests(md5, hashlib.sha256(data).hexdigest())
        self._ask(lambda provider: provider.put(key, data, digests, {}, create=False))

    def write_if(self, key: str, data: bytes, version: str | None) -> bool:
        """Writes a small object if it still has this version, or with None if it does not exist. Returns whether."""
        return self._ask(lambda provider: provider.write_if(key, data, version))

    def upload(self, key: str, path: Path) -> None:
        """Writes a local file as an object. A large file is an upload in parts with up to five attempts a part."""
        if path.stat().st_size <= 2 * PART_BYTES:
            self.write(key, path.read_bytes())
            return
        body = file_body(path)

        begun: list[str] = []  # its ID; other keys may begin with this one, and other uploads may be to it

        async def note(upload: str, _: Parts) -> None:
            begun.append(upload)

        async def once() -> None:
            tries = replace(self._tries, timeouts_too=True)
            await PartsUpload(self._provider(), key, body, tries, on_begun=note).send({}, 1, create=False)

        try:
            wait_for(once())
        except Exception:
            with contextlib.suppress(ObjectError, Fatal):  # the error of the upload is raised instead
                if begun:
                    self._ask(lambda provider: provider.abort(key, begun[0]))
            raise

    def download(self, key: str, write: Callable[[bytes], object]) -> bool:
        """Passes an object to ``write`` in blocks as they arrive. Returns False if it does not exist.

        An interrupted response is resumed where it ended, if the object still has its version.
        """
        done, version = 0, ""

        async def once(provider: Provider) -> bool:
            nonlocal done, version
            try:
                got = await provider.get(key, self._side, start=done, if_version=version if done else "")
            except ObjectError as error:
                if error.error_class is ErrorClass.NOT_FOUND and not done:
                    return False
                raise
            version = got.info.version or ""
            try:
                while block := await got.response.read_chunk():
                    await asyncio.to_thread(write, block)  # the loop is that of all buckets
                    done += len(block)
            except Exception as exc:  # noqa: BLE001 - errors.py knows them
                raise from_store_http(exc, self._side) from None
            finally:
                got.response.close()
            return True

        while True:
            before = done
            try:
                return self._unless_missing(lambda: self._ask(once), False)
            except ObjectError:
                if done == before or not version:  # five attempts without a byte, or nothing to tell versions apart
                    raise

    def _unless_missing(self, work: Callable[[], T], missing: T) -> T:
        """Returns the result of ``work``, or ``missing`` if its last attempt ends in a 404.

        A 404 that does not name the object may come from a proxy, so it is retried first.
        """
        try:
            return work()
        except ObjectError as error:
            if error.status_code == 404:
                return missing
            raise
