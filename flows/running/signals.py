"""Ctrl-C and SIGTERM: what they mean depends on how far the run is.

| the run | the first signal | a second one |
|---|---|---|
| opens: nothing moves yet | ends it, as `Interrupted` | ends the process at once |
| plans | ends the planning; nothing was decided that would be lost | the same |
| moves | no new objects; those in flight may end, for 10 s at most; outcomes are written | the same |
| is over, and is being recorded | changes nothing | the same |

A run that is cancelled at Prefect takes that for a first signal (:func:`interrupt`). A worker sends SIGTERM for it as
well, before or after: that one does not count as a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

AGAIN = "; run the job again to go on where it stopped"
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
last_signal: signal.Signals | None = None  # for the exit code
_asked = ""  # why :func:`interrupt` was called
_expected = False  # after that a signal of the worker's may come for the same reason
_told: Callable[[str], None] | None = None  # hears of the first signal; None: it is raised


class Interrupted(KeyboardInterrupt):
    """A signal, while nothing had to be brought to an end. No Exception: nobody is to take it for a failure."""


def exit_code() -> int:
    """Of a command that a signal has ended."""
    return EXIT_CODES[last_signal or signal.SIGINT]


def _received(number: int, _: FrameType | None) -> None:
    global last_signal, _expected
    if last_signal is not None:
        if _expected:
            _expected = False
            return
        os._exit(EXIT_CODES[last_signal])
    last_signal = signal.SIGINT if _asked else signal.Signals(number)
    _expected = bool(_asked)
    reason = _asked or f"interrupted by {last_signal.name}{AGAIN}"
    if _told is None:
        raise Interrupted(reason)
    _told(reason)


def interrupt(reason: str) -> None:
    """As a first Ctrl-C would, but for ``reason``; from any thread. After a signal it changes nothing."""
    global _asked
    if last_signal is None and not _asked and signal.getsignal(signal.SIGTERM) is _received:
        _asked = reason
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)  # SIGINT may be ignored; it wakes whatever the thread waits for


def asked() -> str:
    """The reason that :func:`interrupt` was given; "" where it was not called, or came after a signal."""
    return _asked


def listen() -> None:
    """From now on signals are ours; only in the main thread, which alone may say so.

    A flow says so once more: Prefect has put its own handler of SIGTERM in between, which ends a run as Crashed, and
    puts back what was before when it has recorded the run's end. Where a signal is ignored (a shell's background jobs
    ignore SIGINT) it stays so.
    """
    global _told
    _told = None
    if threading.current_thread() is threading.main_thread():
        for number in EXIT_CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _received)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """As :func:`listen`, for a command: until the end of the block."""
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    listen()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def ended_by_the_system() -> Iterator[None]:
    """While libraries load, a Ctrl-C ends the process: raised there, pydantic takes it for an error of a model's, and
    Prefect goes on without what it was about to load."""
    handler = signal.getsignal(signal.SIGINT)
    ours = handler is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def telling(stop: Callable[[str], None]) -> Iterator[None]:
    """From now on the first signal calls ``stop`` with a sentence for people, in the main thread, between any two
    instructions: it may wait for nothing. After the block it changes nothing."""
    global _told
    _told = stop
    try:
        yield
    finally:
        _told = _ignored


def _ignored(_: str) -> None:
    """The end of a run is recorded; that takes a moment."""
