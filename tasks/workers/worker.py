"""A worker, which is one more engine process of a run; :mod:`tasks.workers.pool` starts it.

It reads its setup, then chunks and beats, from standard input, and answers on standard output. A beat says how long the
run's lease lasts; without a valid lease the worker writes no outcome. It ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

from ferry.core import ChunkIncomplete, Fatal, FerryError, UserError, die_with_parent
from ferry.job import Limits
from ferry.processes import Message, read_message, write_message
from ferry.ratelimit import busiest
from ferry.state import Borrowed, ChunkRef
from ferry.transfer import Runtime, run_chunk
from tasks.reporting import log_format
from tasks.workers.tuning import for_many_objects, limit_malloc_arenas, raise_file_limit

CHUNK, BEAT, RESULT = 1, 2, 3  # kinds of messages
EVERY_S = 0.25
MOST_SILENT = 50  # hosts without an answer in one message
ENDED_S = 12.0  # longer than the 10 s that objects in flight get after a stop


@dataclass(frozen=True, slots=True)
class Setup(Message):
    """The first message to a worker: the job with the limits in force, its accesses and the share of limits."""

    headers: dict[str, str]
    run_no: int
    share: int
    run_fields: dict[str, Any] = field(default_factory=dict)  # for log lines


class Worker:
    """Runs the chunks that it receives in its own runtime."""

    def __init__(self, setup: Setup, out: Any) -> None:
        self._lease = Borrowed()
        self._limits = setup.job.limits, setup.share
        self.runtime = Runtime(
            setup.job, setup.open_state(), self._lease, setup.run_no,
            source_access=setup.source, destination_access=setup.destination, headers=setup.headers,
            auth=setup.auth, share=setup.share,
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
        data = json.loads(message)
        if kind == CHUNK:
            ref = ChunkRef(**data)
            self.runtime.expect(ref.digest, ref.rows - ref.done)
            with self._lock:
                self._received.append(ref.digest)
            thread = threading.Thread(target=self._work, args=(ref,), daemon=True)
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]
            thread.start()
            return
        self._lease.until = data["until"]
        if data["stop"]:
            self.runtime.request_stop(data["stop"])
        self.runtime.pause(data["paused"])
        limits = Limits.model_validate(data["limits"]), data["share"]
        if limits != self._limits:
            self._limits = limits
            self.runtime.set_limits(*limits)
        if data["pauses"]:
            self.runtime.apply_pauses(data["pauses"])

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
        except ChunkIncomplete as error:
            answer = {"pending": error.pending, "why": error.why, "hopeless": error.hopeless}
        except UserError as error:
            answer = {"user_error": str(error)}
        except FerryError as error:
            answer = {"fatal": str(error)}
        except Exception as error:  # noqa: BLE001 - a bug, which ends the run with this message
            answer = {"fatal": f"unexpected {type(error).__name__}: {error}"}
        self.runtime.over(ref.digest)
        self._beat()  # before the result, so that the run's counts include the chunk when it ends
        self._send(RESULT, {"chunk": ref.digest, **answer})

    def _beat_often(self) -> None:
        while not self._closing.wait(EVERY_S):
            self._beat()
        self._beat()

    def _beat(self) -> None:
        rt = self.runtime
        snapshots, opened = rt.hosts()
        known = busiest(rt.run_no, snapshots, 0.0).hosts
        with self._lock:  # keeps concurrent beats in order
            got, self._received = self._received, []
            done = rt.progress.snapshot()
            self._send(
                BEAT,
                {
                    "got": got, "rows": rt.rows_ahead, "room": rt.dispatcher.rows_wanted, "cpu_s": rt.loop_cpu_s(),
                    "hosts": [asdict(host) for host in known], "opened": opened, "pauses": rt.limiter.pauses(),
                    "statuses": done.statuses, "classes": done.classes, "bytes": done.bytes,
                    "silent": dict(list(rt.dispatcher.silent.items())[:MOST_SILENT]), "waits": rt.waits(),
                    "pieces": rt.object_transfer.waits.pieces,
                },
            )  # fmt: skip

    def _send(self, kind: int, data: dict[str, Any]) -> None:
        with self._lock:
            try:
                write_message(self._out, kind, json.dumps(data).encode())
            except (BrokenPipeError, ValueError):  # the run died or closed the pipe, so this process ends
                self._closing.set()


def error_of(answer: dict[str, Any], chunk: str) -> FerryError:
    """Returns the error that a worker's answer describes."""
    if "pending" in answer:
        return ChunkIncomplete(chunk, answer["pending"], answer["why"], hopeless=answer["hopeless"])
    return UserError(answer["user_error"]) if "user_error" in answer else Fatal(answer["fatal"])


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
