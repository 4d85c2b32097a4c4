"""The run's handle of one worker process: what it is sent, what it says, and its end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

from ferry.core import ProcessLost, command
from ferry.processes import read_message, write_message
from ferry.state import ChunkRef
from ferry.transfer import (
    SILENT_END_S,
    SILENT_WARN_S,
    ChunkResult,
    Runtime,
    Silence,
    Wait,
    duration,
)
from tasks.workers.messages import Beat, Orders, error_of
from tasks.workers.peer import Peer
from tasks.workers.worker import BEAT, CHUNK, ENDED_S, ORDERS, Setup

QUIET_S = 2.0  # a process that has been silent for longer gets no work


class WorkerHandle(Peer):
    """The run's handle of a worker process, which dies with the thread that created it."""

    def __init__(self, setup: Setup, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._process = subprocess.Popen(
            command("tasks.workers.worker", arrow=True),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C must reach only the run
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[ChunkResult]] = {}
        self.unacknowledged: dict[str, int] = {}  # chunks that the worker has not acknowledged, and their rows
        self._silence = Silence(time.monotonic())
        self._cause = "ended during chunk {chunk}, possibly for lack of memory"
        self.retired = False
        self._send(0, setup.encode())
        threading.Thread(target=self._listen, name="ferry-worker", daemon=True).start()

    @property
    def wants_rows(self) -> bool:
        """Whether the worker needs another chunk."""
        return self.answers and self.rows_ahead < self._beat.room

    @property
    def answers(self) -> bool:
        """Whether the worker sent a message recently, or was just started.

        Other workers get no messages: a worker that does not read lets the pipe fill up, and writes would block.
        """
        return not self.has_died and not self.retired and (not self._beats or self._silence.seconds < QUIET_S)

    @property
    def silent_s(self) -> float:
        """For how long the worker has been silent although it has work; 0 if it has died."""
        return 0.0 if self.has_died else self._silence.seconds

    @property
    def waits(self) -> list[Wait]:
        """What the worker's rows wait for, by its last message."""
        if self.silent_s >= SILENT_WARN_S:
            words = f"an engine process that has been silent for {duration(self.silent_s)}"
            return [Wait(words, self.rows_ahead)]
        return super().waits

    def check_silence(self, now: float) -> None:
        """Check for messages since the last check; kill the worker after too long a silence.

        SIGKILL also ends a process that is stopped (SIGSTOP). :meth:`_listen` then notices the end.
        """
        if not self.has_died and self._silence.check(now, self._beats) >= SILENT_END_S:
            self._cause = f"was silent for {SILENT_END_S:.0f} s and was killed, during chunk {{chunk}}"
            self._process.kill()

    @property
    def rows_ahead(self) -> int:
        """The worker's waiting rows, by its last message, and the rows of unacknowledged chunks."""
        return self._beat.rows + sum(list(self.unacknowledged.values()))

    @property
    def cpu_s(self) -> float:
        """The CPU seconds of the worker's event loop, by its last message."""
        return self._beat.cpu_s

    def run(self, ref: ChunkRef) -> ChunkResult:
        """Run a chunk in the worker, as ferry.transfer.run_chunk does. Also raises ProcessLost."""
        future: Future[ChunkResult] = Future()
        if self.retired:  # after the chunk was assigned
            raise self._lost(ref.digest)
        with self._lock:
            self._waiting[ref.digest] = future
        self._send(CHUNK, json.dumps(asdict(ref)).encode())
        if self.has_died:
            self._mark_dead()
        with self._runtime.attempting(ref.digest):
            return future.result()

    def send(self, orders: Orders) -> None:
        """Send the run's orders to the worker."""
        self._send(ORDERS, orders.encode())

    def retire(self) -> None:
        """Let the worker end after its objects in flight. A pass of this run takes its other rows."""
        self.retired = True
        self._cause = "ended during chunk {chunk}, since a limit allows fewer processes"
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self) -> None:
        """Let the worker end by closing its input; kill it if it takes too long."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, kind: int, message: bytes) -> None:
        with self._lock:
            try:
                write_message(self._process.stdin, kind, message)
            except (BrokenPipeError, ValueError):  # the worker has died, as the listener also notices
                self.has_died = True

    def _listen(self) -> None:
        while message := read_message(self._process.stdout):
            if message[0] == BEAT:
                self.take(Beat.decode(message[1]))
            else:
                data = json.loads(message[1])
                future = self._waiting.pop(data["chunk"], None)
                if future is None:  # lost
                    continue
                if "result" in data:
                    future.set_result(ChunkResult(**data["result"]))
                elif "pending" in data and self.retired:
                    future.set_exception(self._lost(data["chunk"]))
                else:
                    future.set_exception(error_of(data, data["chunk"]))
        self._mark_dead()

    def take(self, beat: Beat) -> None:
        super().take(beat)
        for digest in beat.got:
            self.unacknowledged.pop(digest, None)

    def _mark_dead(self) -> None:
        self.has_died = True
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for digest, future in waiting.items():
            future.set_exception(self._lost(digest))

    def _lost(self, digest: str) -> ProcessLost:
        return ProcessLost(f"an engine process {self._cause.format(chunk=digest[:12])}")
