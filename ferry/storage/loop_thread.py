"""An event loop in a thread of its own, for code that blocks and has requests to send."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # process ID -> loop: a fork has no threads of its parent


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in this process's loop for control requests. Blocks, so do not call it in an event loop."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:  # such as a KeyboardInterrupt
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="ferry-control", daemon=True).start()
        return loop
