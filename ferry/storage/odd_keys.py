"""Keys that some stores refuse or change: with an empty segment, `.`, `..`, a final `/`, or a backslash."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from uuid import uuid4

from ferry.core import ErrorClass, Fatal, ObjectError, Tries, whole_body
from ferry.storage.provider import TRIAL, Digests, Provider

# Each pattern with a key to try. The first trial begins with `/`, since some stores remove that alone.
_ODD_KEYS = (
    (re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)"), "/{}/a//b/./c/../d/"),
    (re.compile(r"\\"), "{}/a\\b"),
)


def is_odd(key: str) -> bool:
    """Returns whether a key has an empty segment, `.` or `..`, a final `/`, or a backslash."""
    return any(pattern.search(key) for pattern, _ in _ODD_KEYS)


class OddKeys:
    """Tries once for each kind of odd key whether a bucket keeps it."""

    def __init__(
        self, path: Callable[[str], str], provider: Callable[[], Provider], may_write: Callable[[], Awaitable[bool]]
    ) -> None:
        """``path`` returns a key's path in the bucket, ``may_write`` whether the store accepts other keys."""
        self._path = path
        self._provider = provider
        self._may_write = may_write
        self._trials: dict[str, asyncio.Task[None]] = {}

    async def check(self, key: str) -> None:
        """Raises ObjectError (BAD_KEY) for a key that this bucket would change; tried when it is first needed."""
        for pattern, trial in _ODD_KEYS:
            if not pattern.search(self._path(key)):
                continue
            if trial not in self._trials or self._trials[trial].cancelled():
                self._trials[trial] = asyncio.create_task(self._try(trial))
            try:
                await asyncio.shield(self._trials[trial])
            except ObjectError as error:
                if error.error_class is not ErrorClass.BAD_KEY:
                    self._trials.pop(trial, None)  # the next such key tries again
                raise

    async def _try(self, trial: str) -> None:
        key = self._path(trial.format(TRIAL + uuid4().hex))
        body = await whole_body(b"written by Ferry, which deletes it at once\n", None)
        provider, digests = self._provider(), Digests(body.md5, body.sha256)
        try:
            await Tries().call_async(lambda: provider.put(key, body.data or b"", digests, {}, create=False))
            page = await Tries().call_async(lambda: provider.page(key, "destination"))
            kept = key in [found.key for found in page.objects]
        except (ObjectError, Fatal):
            if not await self._may_write():
                raise  # the store refuses or fails with any key
            kept = False
        finally:
            with contextlib.suppress(ObjectError, Fatal):
                await provider.delete([key], "destination")
        if not kept:
            which = "a backslash" if "\\" in trial else "`//`, `.` or `..`, or a final `/`"
            raise ObjectError(ErrorClass.BAD_KEY, f"this store refuses or changes keys with {which}; set `key`")
