"""The engine processes of a run: this one, and others where one core is not enough (docs/decisions/0011)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ferry.core import ProcessLost, command
from ferry.job import Job
from ferry.processes import Growth, cores, idle_s, read_message, write_message
from ferry.ratelimit import HostSnapshot, is_bounded, most_processes
from ferry.state import ChunkRef, Lease
from ferry.transfer import (
    AHEAD_ROWS,
    CHECK_S,
    READY_ROWS,
    SILENT_END_S,
    SILENT_WARN_S,
    Action,
    ChunkResult,
    Moment,
    Runtime,
    Silence,
    Wait,
    Watchdog,
    describe_stall,
    duration,
    is_excused,
    run_chunk,
)
from tasks.workers.worker import BEAT, CHUNK, ENDED_S, Setup, error_of

QUIET_S = 2.0  # a process that has been silent for longer is given nothing
MOST = 16  # processes; more were never measured
Pauses = dict[str, tuple[float, str]]  # host: until when (monotonic), why


class WorkerHandle:
    """Another engine process, seen from the run. It dies with the thread that made it."""

    def __init__(self, setup: Setup, runtime: Runtime) -> None:
        self._runtime = runtime
        self._process = subprocess.Popen(
            command("tasks.workers.worker"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C reaches the run first
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[ChunkResult]] = {}
        self.coming: dict[str, int] = {}  # chunks that it has not heard of yet, and their rows
        self._beat: dict[str, Any] = {
            "got": [], "rows": 0, "room": READY_ROWS + AHEAD_ROWS, "cpu_s": 0.0, "hosts": [], "opened": 0, "pauses": {},
            "statuses": {}, "classes": {}, "bytes": 0, "waits": [], "pieces": 0,
        }  # fmt: skip
        self._beats = 0
        self._silence = Silence(time.monotonic())
        self._why_lost = "ended in the middle of chunk {chunk} (was there memory enough?)"
        self.is_lost = False
        self._send(0, setup.encode())
        threading.Thread(target=self._listen, name="ferry-helper", daemon=True).start()

    @property
    def hungry(self) -> bool:
        """It could do with another chunk."""
        return self.answers and self.rows_ahead < self._beat["room"]

    @property
    def answers(self) -> bool:
        """It was heard a moment ago, or has just been started. Another one is told nothing: what it does not read fills
        the pipe, and the write then waits for as long as it is silent."""
        return not self.is_lost and (not self._beats or self._silence.seconds < QUIET_S)

    @property
    def silent_s(self) -> float:
        """For how long it has said nothing though it has work; 0 where it is lost."""
        return 0.0 if self.is_lost else self._silence.seconds

    @property
    def waits(self) -> list[Wait]:
        """What its rows wait for, as it said last."""
        if self.silent_s >= SILENT_WARN_S:
            words = f"an engine process that has not answered for {duration(self.silent_s)}"
            return [Wait(words, self.rows_ahead)]
        return [] if self.is_lost else [Wait(*wait) for wait in self._beat["waits"]]

    @property
    def pieces(self) -> int:
        return int(self._beat["pieces"])

    def listen(self, now: float) -> None:
        """Looks whether it lives; ends it when it has been silent for too long. A process that is stopped (SIGSTOP)
        dies of SIGKILL as any other; :meth:`_listen` hears its end."""
        if not self.is_lost and self._silence.check(now, self._beats) >= SILENT_END_S:
            self._why_lost = f"did not answer for {SILENT_END_S:.0f} s and was ended, in chunk {{chunk}}"
            self._process.kill()

    @property
    def rows_ahead(self) -> int:
        """What it said last, and what it was given since."""
        return int(self._beat["rows"]) + sum(list(self.coming.values()))

    @property
    def cpu_s(self) -> float:
        return float(self._beat["cpu_s"])

    @property
    def hosts(self) -> tuple[list[HostSnapshot], int]:
        """What it does at each host, and how many connections it opened."""
        return [HostSnapshot(**host) for host in self._beat["hosts"]], self._beat["opened"]

    @property
    def pauses(self) -> Pauses:
        return {name: (until, why) for name, (until, why) in self._beat["pauses"].items()}

    def run(self, ref: ChunkRef) -> ChunkResult:
        """As :func:`ferry.transfer.chunk.run_chunk`; raises ProcessLost as well."""
        future: Future[ChunkResult] = Future()
        with self._lock:
            self._waiting[ref.digest] = future
        self._send(CHUNK, json.dumps(asdict(ref)).encode())
        if self.is_lost:
            self._lose()
        with self._runtime.attempting(ref.digest):
            return future.result()

    def tell(self, beat: dict[str, Any]) -> None:
        self._send(BEAT, json.dumps(beat).encode())

    def close(self) -> None:
        """Ends it; after what it has at hand, which is to be nothing."""
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
            except (BrokenPipeError, ValueError):  # it is gone; the listener sees that too
                self.is_lost = True

    def _listen(self) -> None:
        while message := read_message(self._process.stdout):
            data = json.loads(message[1])
            if message[0] == BEAT:
                self._heard(data)
            else:
                future = self._waiting.pop(data["chunk"])
                if "result" in data:
                    future.set_result(ChunkResult(**data["result"]))
                else:
                    future.set_exception(error_of(data, data["chunk"]))
        self._lose()

    def _heard(self, beat: dict[str, Any]) -> None:
        """Counts what it did since it was heard last."""
        before, self._beat = self._beat, beat
        self._beats += 1
        for digest in beat["got"]:
            self.coming.pop(digest, None)
        more = {
            name: {key: count - before[name].get(key, 0) for key, count in beat[name].items()}
            for name in ("statuses", "classes")
        }
        self._runtime.progress.add_all(more["statuses"], more["classes"], beat["bytes"] - before["bytes"])

    def _lose(self) -> None:
        self.is_lost = True
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for digest, future in waiting.items():
            future.set_exception(ProcessLost(f"an engine process {self._why_lost.format(chunk=digest[:12])}"))


def processes_of(job: Job, limit: int | None) -> tuple[int, int]:
    """Engine processes at the start, and at most. A run with --limit counts its rows in one.

    | `processes` | bounds by the user | at the start | at most |
    |---|---|---|---|
    | auto | none | 1 | cores, 16 at most |
    | auto | some | 1 | 1: what is measured is the bound |
    | N | none | N | N |
    | N | some | N, or the places of the smallest one | the same |
    """
    concurrency = None if job.concurrency == "auto" else job.concurrency
    if limit is not None:
        return 1, 1
    if job.processes == "auto":
        return 1, 1 if is_bounded(concurrency, job.limits) else min(cores(), MOST)
    most = most_processes(job.processes, concurrency, job.limits)
    return most, most


class WorkerPool:
    """Which process runs which chunk, and when another one is started. Made by the run, in its main thread."""

    def __init__(self, runtime: Runtime, lease: Lease, setup: Setup, most: int) -> None:
        """Starts with ``setup.share`` processes, this one among them; at most ``most``."""
        self._runtime = runtime
        self._lease = lease
        self._setup = setup
        self._most = most
        self._growth = Growth()
        self._at: dict[str, WorkerHandle | None] = {}  # of chunks that are not settled: it knows what of them is done
        self.helpers: list[WorkerHandle] = []
        runtime.other_processes = lambda: [helper.hosts for helper in self.helpers]
        for _ in range(setup.share - 1):
            self.helpers.append(WorkerHandle(setup, runtime))
        self.transferring = False  # else the run plans, or counts
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="ferry-watchdog", daemon=True)
        self._watching.start()

    def _watch(self) -> None:
        """The watchdog's thread: neither the event loop nor a pipe that nothing reads from can hold it up."""
        watchdog = Watchdog(time.monotonic())
        while not self._over.wait(CHECK_S):
            now = time.monotonic()
            for helper in list(self.helpers):
                helper.listen(now)
            self._judge(watchdog, now)

    def _judge(self, watchdog: Watchdog, now: float) -> None:
        runtime, helpers = self._runtime, list(self.helpers)
        waits = [*runtime.waits(), *(wait for helper in helpers for wait in helper.waits)]
        moment = Moment(
            runtime.progress.settled, runtime.object_transfer.waits.pieces + sum(helper.pieces for helper in helpers),
            self.transferring and not runtime.stopping and runtime.progress.pending > 0,
            is_excused(runtime.paused, waits),
        )  # fmt: skip
        action = watchdog.check(now, moment)
        silent_s = max((helper.silent_s for helper in helpers), default=0.0)
        words = ""
        if action is not Action.NOTHING:
            words = describe_stall(watchdog.still_s, waits)
        elif silent_s >= SILENT_WARN_S:
            words = f"an engine process has not answered for {duration(silent_s)}"
        runtime.progress.still = words
        if action is Action.END:
            runtime.request_stop(f"{words}. The run was ended: rows that are pending are taken by the next one")

    @property
    def processes(self) -> int:
        return 1 + sum(not helper.is_lost for helper in self.helpers)

    def place(self, ref: ChunkRef, *, wanted: bool) -> bool:
        """Decides who is to run a chunk: the process with the least to do. False: all have enough, and ``wanted`` is
        not set. A chunk stays where it ran before: what of it is done, that process knows.
        """
        own = self._runtime
        able: list[tuple[int, WorkerHandle | None]] = [
            (helper.rows_ahead, helper) for helper in self.helpers if helper.hungry
        ]
        if own.wants_chunk or (wanted and not able):
            able.append((own.rows_ahead, None))
        if not able:
            return False
        helper = self._at[ref.digest] = min(able, key=lambda entry: entry[0])[1]
        rows = ref.rows - ref.done
        if helper is None:
            own.expect(ref.digest, rows)
        else:
            helper.coming[ref.digest] = rows
        return True

    def run_chunk(self, ref: ChunkRef) -> ChunkResult:
        """Runs a chunk in its place; from the thread of its task. As ferry.transfer.chunk.run_chunk."""
        helper = self._at[ref.digest]
        return run_chunk(self._runtime, ref) if helper is None else helper.run(ref)

    def over(self, digest: str) -> None:
        """This chunk will not come again: it settled, or came back Cached, or Prefect gave up on it."""
        self._runtime.over(digest)
        if helper := self._at.pop(digest, None):
            helper.coming.pop(digest, None)

    def look(self) -> bool:
        """A few times a second: tells the others how things stand. True when it started one more."""
        if self.helpers:
            self._beat()
        idle_by_will = self._runtime.stopping or self._runtime.paused
        if self.processes != 1 + len(self.helpers) or self.processes >= self._most or idle_by_will:
            return False  # after one was lost, to lack of memory perhaps, none is started
        idle = idle_s()
        if idle is None:
            return False
        used = [self._runtime.loop_cpu_s(), *(helper.cpu_s for helper in self.helpers)]
        now = time.monotonic()
        if self._growth.look(now, used, idle, lambda: self._runtime.progress.snapshot().left_s) and not self._held_back:
            return self._start(len(self.helpers) + 2)
        return False

    @property
    def _held_back(self) -> bool:
        """A host allows no more than so many requests per second: another process brings none."""
        return any(host.requests_per_s is not None for host in self._runtime.hosts()[0])

    def _start(self, share: int) -> bool:
        setup = replace(self._setup, share=share)
        try:
            self.helpers.append(WorkerHandle(setup, self._runtime))
        except OSError:  # no memory, or no process more for this user: one less will do
            self._most = self.processes
            return False
        self._setup = setup
        self._runtime.set_share(share)
        self._beat()
        return True

    def _beat(self) -> None:
        live = [helper for helper in self.helpers if helper.answers]
        pauses: dict[WorkerHandle | None, Pauses] = {None: self._runtime.limiter.pauses()}
        pauses |= {helper: helper.pauses for helper in live}
        for helper in live:
            if pauses[helper]:
                self._runtime.apply_pauses(pauses[helper])
            merged = {name: pause for other in pauses if other is not helper for name, pause in pauses[other].items()}
            helper.tell(
                {
                    "until": self._lease.until, "stop": self._runtime.stop_reason, "share": self._setup.share,
                    "pauses": merged, "paused": self._runtime.paused,
                }
            )  # fmt: skip

    def close(self) -> None:
        self._over.set()
        self._watching.join()
        for helper in self.helpers:
            helper.close()
