"""A worker, which is one more engine process of a run; :mod:`tasks.workers.pool` starts it.

It reads its setup, then chunks and orders, from standard input, and answers on standard output. Orders say how long the
run's lease lasts; without a valid lease the worker writes no outcome. It ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

from ferry.core import die_with_parent
from ferry.processes import Message, read_message, write_message
from ferry.ratelimit import Share
from ferry.state import LENGTH_S, Borrowed, ChunkRef, for_a_while, patient
from ferry.transfer import Runtime, run_chunk
from tasks.reporting import log_format
from tasks.workers.messages import Beat, Orders, describe_error
from tasks.workers.tuning import for_many_objects, limit_malloc_arenas, raise_file_limit

CHUNK, ORDERS, BEAT, RESULT = 1, 2, 3, 4  # kinds of messages: two to a worker, two from it
EVERY_S = 0.25
ENDED_S = 12.0  # longer than the 10 s that objects in flight get after a stop


@dataclass(frozen=True, slots=True)
class Setup(Message):
    """The first message to a worker: the job with the limits in force, its accesses, and how they are divided."""

    headers: dict[str, str]
    run_no: int
    share: Share
    run_fields: dict[str, Any] = field(default_factory=dict)  # for log lines


class Worker:
    """Runs the chunks that it receives in its own runtime."""

    def __init__(self, setup: Setup, out: Any) -> None:
        # between machines the lease's holder may wait for the state, and sends a new time once it answers
        self._lease = Borrowed(LENGTH_S) if setup.job.machines > 1 else Borrowed()
        share = Share(*setup.share)  # a list in JSON
        self._limits = setup.job.limits, share
        self.runtime = Runtime(
            setup.job, patient(setup.open_state(), for_a_while), self._lease, setup.run_no,
            source_access=setup.source, destination_access=setup.destination, headers=setup.headers,
            auth=setup.auth, share=share,
        )  # fmt: skip
        self._out = out
        self._lock = threading.RLock()
        self._received: list[str] = []  # chunks received since the last beat
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._beat_thread = threading.Thread(target=self._beat_often, daemon=True)
        self._beat_thread.start()

    def handle(self, kind: int, message: bytes) -> None:
        """Handle one message of the run."""
        if kind == CHUNK:
            ref = ChunkRef(**json.loads(message))
            self.runtime.expect(ref.digest, ref.rows - ref.done)
            with self._lock:
                self._received.append(ref.digest)
            thread = threading.Thread(target=self._work, args=(ref,), daemon=True)
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]
            thread.start()
            return
        orders = Orders.decode(message)
        self._lease.until = orders.until
        limits = orders.limits_in_force(), Share(orders.share, orders.machine_share)
        if limits != self._limits:
            self._limits = limits
            self.runtime.set_limits(*limits)
        orders.apply(self.runtime)

    def close(self) -> None:
        """Stop the chunks that are still active, and end the runtime."""
        if any(thread.is_alive() for thread in self._threads):
            self.runtime.request_stop("the run has ended")
            for thread in self._threads:
                thread.join(ENDED_S)
        self._closing.set()
        self._beat_thread.join()
        self.runtime.close()

    def _work(self, ref: ChunkRef) -> None:
        answer: dict[str, Any]
        try:
            answer = {"result": asdict(run_chunk(self.runtime, ref))}
        except Exception as error:  # noqa: BLE001 - also a bug, which ends the run with this message
            answer = describe_error(error)
        self.runtime.over(ref.digest)
        self._beat()  # before the result, so that the run's counts include the chunk when it ends
        self._send(RESULT, json.dumps({"chunk": ref.digest, **answer}).encode())

    def _beat_often(self) -> None:
        while not self._closing.wait(EVERY_S):
            self._beat()
        self._beat()

    def _beat(self) -> None:
        rt = self.runtime
        with self._lock:  # keeps concurrent beats in order
            got, self._received = self._received, []
            room = rt.dispatcher.rows_wanted
            beat = Beat.of(rt, got=got, rows=rt.rows_ahead, room=room, cpu_s=rt.loop_cpu_s())
            self._send(BEAT, beat.encode())

    def _send(self, kind: int, message: bytes) -> None:
        with self._lock:
            try:
                write_message(self._out, kind, message)
            except (BrokenPipeError, ValueError):  # the run died or closed the pipe, so this process ends
                self._closing.set()


def main() -> None:
    """Run the worker until its standard input closes."""
    die_with_parent()
    first = read_message(sys.stdin.buffer)
    if first is None:
        return
    raise_file_limit()
    limit_malloc_arenas()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with answers
    setup = Setup.decode(first[1])
    log_format.configure_plain_logging(setup.run_fields)
    worker = Worker(setup, out)
    with for_many_objects():
        while message := read_message(sys.stdin.buffer):
            worker.handle(*message)
        worker.close()


if __name__ == "__main__":
    main()
