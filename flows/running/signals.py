"""Handling of Ctrl-C and SIGTERM, whose effect depends on how far the run is.

| the run | the first signal | a second signal |
|---|---|---|
| opens: nothing is copied yet | ends it, as `Interrupted` | ends the process at once |
| plans | ends the planning; nothing is lost | the same |
| transfers | starts no object; those in flight get at most 10 s; outcomes are written | the same |
| has ended, and is being recorded | changes nothing | the same |

A cancellation at Prefect counts as a first signal (:meth:`Interrupts.request`). The run's worker also sends SIGTERM for
it, before or after: that signal does not count as a second one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType

from tasks.reporting import log_format

ACKNOWLEDGED = "rows in progress get 10 s at most, no other begins. A second Ctrl-C ends the run at once"
RESUME_HINT = "; run the job again to resume"
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupted(KeyboardInterrupt):
    """A signal before the transfer. Not an Exception: handlers of failures must not catch it."""


class Interrupts:
    """The signals of one command, or of one flow run of a worker: which came first, and what it does."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None  # decides the exit code
        self.requested = ""  # the reason given to :meth:`request`; "" without one, or if a signal came before
        self._expects_workers_signal = False  # after a request, the worker may send a signal for the same reason
        self._stop: Callable[[str], None] | None = None  # called at the first signal; None: Interrupted is raised

    @property
    def exit_code(self) -> int:
        """The exit code of a command that a signal ended."""
        return EXIT_CODES[self.first or signal.SIGINT]

    def request(self, reason: str) -> None:
        """Act as a first Ctrl-C does, but for ``reason``; from any thread. Does nothing after a signal."""
        if self.first is None and not self.requested and signal.getsignal(signal.SIGTERM) == self._receive:
            self.requested = reason
            main = threading.main_thread().ident
            assert main is not None
            # Not SIGINT, which may be ignored. The signal also wakes the main thread from a system call.
            signal.pthread_kill(main, signal.SIGTERM)

    def listen(self) -> None:
        """Install the handlers. Does nothing outside the main thread, which alone may install them.

        A flow calls this again: Prefect has replaced the handler of SIGTERM by its own, which ends a run as Crashed.
        Prefect restores the earlier handler after it has recorded the run's end. A signal that is ignored (a shell's
        background jobs ignore SIGINT) stays ignored.
        """
        self._stop = None
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._receive)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Install the handlers until the block ends, and make this object :func:`current` for its flow runs."""
        before = {number: signal.getsignal(number) for number in EXIT_CODES}
        token = _current.set(self)
        self.listen()
        try:
            yield
        finally:
            _current.reset(token)
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    @contextlib.contextmanager
    def stopping_by(self, stop: Callable[[str], None]) -> Iterator[None]:
        """Have the first signal call ``stop`` with its reason. After the block, a first signal changes nothing.

        The main thread calls ``stop`` between any two instructions, so ``stop`` must not wait for anything.
        """
        self._stop = stop
        try:
            yield
        finally:
            self._stop = _ignore

    @contextlib.contextmanager
    def shielding(self) -> Iterator[None]:
        """Have a first signal change nothing in the block, which tidies up. A second one ends the process."""
        before, self._stop = self._stop, _ignore
        try:
            yield
        finally:
            self._stop = before

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.first is not None:
            if self._expects_workers_signal:
                self._expects_workers_signal = False
                return
            os._exit(EXIT_CODES[self.first])
        self.first = signal.SIGINT if self.requested else signal.Signals(number)
        self._expects_workers_signal = bool(self.requested)
        reason = self.requested or f"interrupted by {self.first.name}{RESUME_HINT}"
        if self._stop is None:
            raise Interrupted(reason)
        if self._stop is not _ignore and not log_format.as_json():
            # not by print, which may be at work in the instruction that the signal came after
            os.write(2, f"\n{reason.removesuffix(RESUME_HINT)}: {ACKNOWLEDGED}\n".encode())
        self._stop(reason)


def _ignore(_: str) -> None:
    """Ignore a signal while the end of a run is being recorded, which takes a moment."""


_current: ContextVar[Interrupts] = ContextVar("interrupts")


def current() -> Interrupts:
    """Returns the object that `main` made, or a new one in a worker's process, which has no command."""
    return _current.get(None) or Interrupts()


def make_current() -> Interrupts:
    """Create the object for this process's command, for :func:`current` in the same thread."""
    interrupts = Interrupts()
    _current.set(interrupts)
    return interrupts


@contextlib.contextmanager
def ended_by_the_system() -> Iterator[None]:
    """While libraries load, let a Ctrl-C end the process.

    As an exception, pydantic would take it for an error of a model, and Prefect would continue without a module.
    """
    handler = signal.getsignal(signal.SIGINT)
    ours = handler is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, handler)
