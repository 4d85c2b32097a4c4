"""Requests of code that blocks: one loop for all threads of a process, and another one in a fork."""

from __future__ import annotations

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from ferry.storage.loop_thread import wait_for


async def its_loop() -> int:
    await asyncio.sleep(0.01)
    return id(asyncio.get_running_loop())


async def fails() -> None:
    raise ValueError("of the coroutine")


def test_threads_share_a_loop() -> None:
    """Connections belong to one loop, so all threads need the same."""
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: wait_for(its_loop()), range(8)))) == 1
    with pytest.raises(ValueError, match="of the coroutine"):
        wait_for(fails())


def test_a_fork_has_a_loop_of_its_own() -> None:
    """A fork has the memory of the loop's thread, but not the thread."""
    wait_for(its_loop())
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        wait_for(its_loop())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_is_not_waited_for_ends() -> None:
    """A Ctrl-C ends the wait, and the request with it."""
    ended: list[str] = []

    async def hangs() -> None:
        try:
            asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGALRM)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait_for(hangs())
    finally:
        signal.signal(signal.SIGALRM, before)
    wait_for(its_loop())
    assert ended == ["cancelled"]
