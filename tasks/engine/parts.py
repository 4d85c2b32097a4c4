"""Uploads in parts: noted before they begin, aborted where they fail, and cleaned up after runs that were killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from tasks.engine.bucket_control import BucketControl
from tasks.engine.errors import Fatal, ObjectError
from tasks.engine.found import Sent


class Notes(Protocol):
    """Notes of uploads under way (uploads.py)."""

    def begin(self, bucket: str, path: str) -> None: ...
    def end(self, bucket: str, path: str) -> None: ...
    def left(self, bucket: str) -> list[str]: ...


class Parts:
    """One bucket's uploads. ``control`` is patient; ``hasty`` is for aborts while an object waits."""

    def __init__(
        self,
        bucket: str,
        notes: Notes | None,
        control: Callable[[], BucketControl],
        hasty: Callable[[], BucketControl],
    ) -> None:
        self._bucket = bucket
        self._notes = notes
        self._control = control
        self._hasty = hasty
        self._open: set[str] = set()  # keys that may have an upload of ours, begun and not ended

    async def upload(self, path: str, work: Callable[[], Awaitable[Sent]]) -> Sent:
        """Has the work done. One that is broken off, cancelled too, leaves its note for the next run.

        A note goes only when no upload can be left: not one of an earlier try either, nor one whose ID was lost.
        """
        left = path in self._open
        self._open.add(path)
        if self._notes is not None:
            await asyncio.to_thread(self._notes.begin, self._bucket, path)
        try:
            sent = await work()
        except (ObjectError, Fatal):
            with contextlib.suppress(ObjectError, Fatal):  # what the upload failed of counts
                await self._abort(path, self._hasty)
            raise
        if left or sent.exists or sent.begun_twice:
            with contextlib.suppress(ObjectError, Fatal):  # the note stays
                await self._abort(path, self._hasty)
        else:
            await self._forget(path)
        return sent

    async def clean(self, prefix: str) -> None:
        """Aborts what earlier runs of this job began; while no other run of it is on."""
        if self._notes is None:
            return
        with contextlib.suppress(ObjectError, Fatal):
            await asyncio.to_thread(self._control().forget_trials, prefix)
        for path in await asyncio.to_thread(self._notes.left, self._bucket):
            self._open.add(path)
            with contextlib.suppress(ObjectError, Fatal):  # the next run tries it again
                await self._abort(path, self._control)

    async def _abort(self, path: str, control: Callable[[], BucketControl]) -> None:
        if await asyncio.to_thread(control().abort, path):
            await self._forget(path)

    async def _forget(self, path: str) -> None:
        self._open.discard(path)
        if self._notes is not None:
            await asyncio.to_thread(self._notes.end, self._bucket, path)
