"""Level `decode`: every pixel of every frame, decoded in child processes whose memory and time are limited.

A child decodes many bodies, because it takes 0.2 s to start. It inherits no sockets and no credentials of the
environment. A child that ends (out of memory, a crash) may do so because of an earlier body, so this is a verdict only
in a new child with all the memory. docs/decisions/0038-decoding-in-a-child.md has the reasons.
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
MAX_CHILDREN = 2  # the number of threads that decode
TOTAL_BYTES = 1024 * MIB  # for all children of this process together, plus 30 MiB of libraries each
DECODE_S = 30  # processor time for one body; 240 megapixels take 2, an animation of 2 gigapixels 8
WAIT_S = 300  # wall-clock time, for a busy machine
MAX_BODIES = 1000  # per child
EXIT_NO_MEMORY = 3  # exit code
COMMAND = command("ferry.images.decode_child")
_MAX_RESPONSE_BYTES = 64 * 1024


class _ChildEnded(Exception):
    """Raised if the child ends without a verdict."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a decoder process ended with exit code {code}")
        self.code = code


class _Child:
    """A child process that decodes one body after the other."""

    def __init__(self, memory: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name in WITHOUT_CREDENTIALS}
        try:
            self._process = subprocess.Popen(
                [*COMMAND, str(memory), str(DECODE_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                stderr=subprocess.DEVNULL, env=environment, start_new_session=True,  # Ctrl-C is the parent's
            )  # fmt: skip
        except OSError as exc:  # an OSError would count as a failure of the origin's connection
            raise RuntimeError(f"a decoder process cannot be started: {exc}") from exc
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._input.fileno(), False)
        self._bodies_left = MAX_BODIES
        self._busy = False  # stays True after an error that is not a verdict

    @property
    def usable(self) -> bool:
        """Whether the child can decode another body."""
        return not self._busy and self._bodies_left > 0 and self._process.poll() is None

    def end(self) -> int:
        """Ends the process if it still runs. Returns its exit code."""
        self._process.kill()
        self._input.close()
        self._output.close()
        return self._process.wait()

    def decode(self, data: Data, kind: Kind) -> None:
        """Decodes a body. Raises ObjectError, which is the verdict, or _ChildEnded."""
        self._busy = True
        self._bodies_left -= 1
        path = str(data.path.absolute()) if isinstance(data, Mapped) else None
        deadline = time.monotonic() + WAIT_S + 1  # after the child's own alarm
        try:
            self._write(json.dumps([kind.name, kind.decoder, path, len(data)]).encode() + b"\n", deadline)
            if path is None:
                self._write(data, deadline)
            response = json.loads(self._read_line(deadline))
            verdict = None if response is None else ObjectError(ErrorClass(response[0]), str(response[1]))
        except TimeoutError:
            raise _too_long(kind) from None
        # It has ended, or the response is invalid.
        except (EOFError, BrokenPipeError, ValueError, TypeError, LookupError):
            code = self.end()
            if code in (-signal.SIGXCPU, -signal.SIGALRM):
                raise _too_long(kind) from None
            raise _ChildEnded(code) from None
        self._busy = False
        if verdict is not None:
            raise verdict

    def _write(self, data: Data, deadline: float) -> None:
        at = 0
        with memoryview(data) as view:
            while at < len(view):
                _wait(self._input, select.POLLOUT, deadline)
                with view[at:] as rest:
                    at += os.write(self._input.fileno(), rest)

    def _read_line(self, deadline: float) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            _wait(self._output, select.POLLIN, deadline)
            chunk = os.read(self._output.fileno(), _MAX_RESPONSE_BYTES)
            if not chunk:
                raise EOFError
            line += chunk
            if len(line) > _MAX_RESPONSE_BYTES:
                raise ValueError("the response is too long")
        return line


def _wait(file: IO[bytes], event: int, deadline: float) -> None:
    """Waits until a pipe is ready. Raises TimeoutError."""
    poll = select.poll()  # `select.select` accepts no descriptor above 1,023
    poll.register(file, event)
    left_s = deadline - time.monotonic()
    if left_s <= 0 or not poll.poll(left_s * 1000):
        raise TimeoutError


def _too_long(kind: Kind) -> ObjectError:
    return _too_large(kind, f"takes more than {DECODE_S} s of processor time, or {WAIT_S} s in total, to decode")


def _too_large(kind: Kind, what: str) -> ObjectError:
    return ObjectError(ErrorClass.TOO_LARGE, f"the {kind.name} {what}; `checks: image` accepts it by its structure")


def _reusable(child: _Child | None) -> _Child | None:
    """Returns the child if it can decode another body; otherwise ends it and returns None."""
    if child is None or child.usable:
        return child
    child.end()
    return None


class DecoderPool:
    """The decoder processes of this process. Each starts with the first body that needs it."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(MAX_CHILDREN):
            self._idle.put(None)
        self._all_lock = threading.Lock()

    def decode(self, data: Data, kind: Kind) -> None:
        """Decodes a body in a child. Blocks. Raises ObjectError."""
        try:
            with self._one_child() as child:
                child.decode(data, kind)
        except _ChildEnded:
            self._decode_alone(data, kind)

    def _decode_alone(self, data: Data, kind: Kind) -> None:
        """Decodes a body in a new child with all the memory, while the other children are idle."""
        with self._all_children():
            child = _Child(TOTAL_BYTES)
            try:
                child.decode(data, kind)
            except _ChildEnded as ended:
                if ended.code == EXIT_NO_MEMORY:
                    memory = f"{TOTAL_BYTES // MIB:,} MiB of memory"
                    raise _too_large(kind, f"takes more than {memory} to decode, or its pixels are damaged") from None
                if ended.code < 0:
                    raise _too_large(kind, f"crashes its decoder ({signal.Signals(-ended.code).name})") from None
                raise RuntimeError(str(ended)) from None
            finally:
                child.end()

    @contextlib.contextmanager
    def _one_child(self) -> Iterator[_Child]:
        child = self._idle.get()
        try:
            child = _reusable(child) or _Child(TOTAL_BYTES // MAX_CHILDREN)
            yield child
        finally:
            self._idle.put(_reusable(child))

    @contextlib.contextmanager
    def _all_children(self) -> Iterator[None]:
        with self._all_lock:  # without it, two threads could each have one child and wait for the other's for ever
            children = [self._idle.get() for _ in range(MAX_CHILDREN)]
        try:
            yield
        finally:
            for child in children:
                self._idle.put(child)


_pool = DecoderPool()


def decode_image(data: Data, kind: Kind) -> None:
    """Decodes a body that passed :func:`ferry.images.check.check_image`, if its kind has a decoder. Blocks.

    Raises ObjectError: ``truncated``, ``not_image``, ``too_large``.
    """
    if kind.decoder:
        _pool.decode(data, kind)
