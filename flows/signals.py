"""Ctrl-C and SIGTERM: no new objects, those in flight may end, outcomes are written."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tasks.engine.runtime import Runtime

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
last_signal: signal.Signals | None = None  # for the exit code


@contextlib.contextmanager
def stop_on_signals(runtime: Runtime) -> Iterator[None]:
    """The first signal stops the run gently, a second one ends the process at once.

    Prefect replaces the SIGTERM handler inside a flow and waits for running threads: ours goes in after
    it, and gives it back. Only the main thread may do so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        global last_signal
        if last_signal is not None:
            os._exit(EXIT_CODES[last_signal])
        last_signal = signal.Signals(number)
        runtime.request_stop(f"interrupted by {last_signal.name}; run the job again to go on where it stopped")

    before = {number: signal.signal(number, stop) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
