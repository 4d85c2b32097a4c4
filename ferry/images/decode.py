"""Level `decode`: every pixel of every frame, decoded in child processes whose memory and time are limited.

A child serves many bodies, since one takes 0.2 s to start. It inherits no sockets, and nothing of the environment that
opens another service. What ends a child (a lack of memory, a crash) may be an earlier body's fault, so it is a verdict
only of a new child that has all the memory. docs/decisions/0038-decoding-in-a-child.md has the reasons.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import IO

from ferry.core import WITHOUT_CREDENTIALS, ErrorClass, Mapped, ObjectError, command
from ferry.images.web import Data, Kind

MIB = 1024**2
CHILDREN = 2  # as many threads decode
TOTAL_BYTES = 1024 * MIB  # for all children of this process together, beside 30 MiB of libraries each
DECODE_S = 30  # processor time for one body; 240 megapixels take 2, an animation of 2 gigapixels 8
WAIT_S = 300  # of the clock, on a busy machine
BODIES = 1000  # that one child serves
NO_MEMORY = 3  # exit code
COMMAND = command("ferry.images.decode_child")
_ANSWER_BYTES = 64 * 1024


class _Ended(Exception):
    """The child has ended without a verdict."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a process that decodes ended with exit code {code}")
        self.code = code


class _Child:
    """A process that decodes one body after the other."""

    def __init__(self, memory: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name in WITHOUT_CREDENTIALS}
        try:
            self._process = subprocess.Popen(
                [*COMMAND, str(memory), str(DECODE_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                stderr=subprocess.DEVNULL, env=environment, start_new_session=True,  # Ctrl-C is the parent's
            )  # fmt: skip
        except OSError as exc:  # which would count as a failure of the origin's connection
            raise RuntimeError(f"a process that decodes cannot be started: {exc}") from exc
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._input.fileno(), False)
        self._left = BODIES
        self._busy = False  # also after all errors but a verdict

    @property
    def usable(self) -> bool:
        """Whether it can decode another body."""
        return not self._busy and self._left > 0 and self._process.poll() is None

    def end(self) -> int:
        """Ends the process, where it has not ended. Returns its exit code."""
        self._process.kill()
        self._input.close()
        self._output.close()
        return self._process.wait()

    def decode(self, data: Data, kind: Kind) -> None:
        """Decodes a body. Raises ObjectError, which is the verdict, and _Ended."""
        self._busy = True
        self._left -= 1
        path = str(data.path.absolute()) if isinstance(data, Mapped) else None
        until = time.monotonic() + WAIT_S + 1  # the child's own alarm comes first
        try:
            self._write(json.dumps([kind.name, kind.decoder, path, len(data)]).encode() + b"\n", until)
            if path is None:
                self._write(data, until)
            answer = json.loads(self._read_line(until))
            verdict = None if answer is None else ObjectError(ErrorClass(answer[0]), str(answer[1]))
        except TimeoutError:
            raise _too_long(kind) from None
        except (
            EOFError,
            BrokenPipeError,
            ValueError,
            TypeError,
            LookupError,
        ):  # it has ended, or answers something else
            code = self.end()
            if code in (-signal.SIGXCPU, -signal.SIGALRM):
                raise _too_long(kind) from None
            raise _Ended(code) from None
        self._busy = False
        if verdict is not None:
            raise verdict

    def _write(self, data: Data, until: float) -> None:
        at = 0
        with memoryview(data) as view:
            while at < len(view):
                _wait(self._input, select.POLLOUT, until)
                with view[at:] as rest:
                    at += os.write(self._input.fileno(), rest)

    def _read_line(self, until: float) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            _wait(self._output, select.POLLIN, until)
            piece = os.read(self._output.fileno(), _ANSWER_BYTES)
            if not piece:
                raise EOFError
            line += piece
            if len(line) > _ANSWER_BYTES:
                raise ValueError("not an answer")
        return line


def _wait(file: IO[bytes], event: int, until: float) -> None:
    """Waits until a pipe can be used. Raises TimeoutError."""
    poll = select.poll()  # `select.select` takes no descriptor above 1,023
    poll.register(file, event)
    left_s = until - time.monotonic()
    if left_s <= 0 or not poll.poll(left_s * 1000):
        raise TimeoutError


def _too_long(kind: Kind) -> ObjectError:
    return _too_large(kind, f"takes more than {DECODE_S} s of processor time, or {WAIT_S} s of the clock, to decode")


def _too_large(kind: Kind, what: str) -> ObjectError:
    return ObjectError(ErrorClass.TOO_LARGE, f"the {kind.name} {what}; `checks: image` accepts it by its structure")


def _kept(child: _Child | None) -> _Child | None:
    """Returns a child that can decode another body; ends any other one, and returns None."""
    if child is None or child.usable:
        return child
    child.end()
    return None


class Decoders:
    """The children of this process. Each starts with the first body that needs it."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(CHILDREN):
            self._idle.put(None)
        self._takes_all = threading.Lock()

    def decode(self, data: Data, kind: Kind) -> None:
        """Decodes a body in a child. Blocks. Raises ObjectError."""
        try:
            with self._one() as child:
                child.decode(data, kind)
        except _Ended:
            self._decode_again(data, kind)

    def _decode_again(self, data: Data, kind: Kind) -> None:
        """Decodes a body in a new child with the memory of all, while the others rest."""
        with self._all():
            child = _Child(TOTAL_BYTES)
            try:
                child.decode(data, kind)
            except _Ended as ended:
                if ended.code == NO_MEMORY:
                    most = f"{TOTAL_BYTES // MIB:,} MiB of memory"
                    raise _too_large(kind, f"takes more than {most} to decode, or its pixels are damaged") from None
                if ended.code < 0:
                    raise _too_large(kind, f"crashes its decoder ({signal.Signals(-ended.code).name})") from None
                raise RuntimeError(str(ended)) from None
            finally:
                child.end()

    @contextlib.contextmanager
    def _one(self) -> Iterator[_Child]:
        child = self._idle.get()
        try:
            child = _kept(child) or _Child(TOTAL_BYTES // CHILDREN)
            yield child
        finally:
            self._idle.put(_kept(child))

    @contextlib.contextmanager
    def _all(self) -> Iterator[None]:
        with self._takes_all:  # two that hold a child each and wait for the other's would wait for ever
            children = [self._idle.get() for _ in range(CHILDREN)]
        try:
            yield
        finally:
            for child in children:
                self._idle.put(child)


_decoders = Decoders()


def decode_image(data: Data, kind: Kind) -> None:
    """Decodes a body that passed :func:`ferry.images.check.check_image`, if there is a decoder for it. Blocks.

    Raises ObjectError: ``truncated``, ``not_image``, ``too_large``.
    """
    if kind.decoder:
        _decoders.decode(data, kind)
