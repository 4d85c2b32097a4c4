"""The run's side of its shards: it submits some, works on the next one itself, and follows the others.

A thread looks at the state and at Prefect every few seconds. Prefect only starts processes and shows them: what an
attempt has done, and whether it lives, is read from the state. Without Prefect, shards that work go on; without any
worker, the run does all shards itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.states import Cancelled, Crashed

from ferry.core import Damaged, Fatal, FerryError
from ferry.ratelimit import most_processes
from ferry.state import ChunkRef, Recorded, impatient, recorded_of
from tasks import prefect_api, work_pools
from tasks.reporting.text import ChunkProblem
from tasks.run import Run
from tasks.shards import prefect_runs
from tasks.shards.cut import cut
from tasks.shards.files import End, Settings, ShardFiles, ShardPlan, SharedOrders, code_digest, read_settings
from tasks.shards.handle import Shard, ShardHandle

TICK_S = 0.5  # between two checks for a stop or a pause
BEATS_IN_A_RATE = 6  # a rate that is shown: a beat has the rows of some seconds, and comes late from a busy state


class Shards:
    """The shards of a run; also its source of more chunks (tasks.transfer.MoreChunks)."""

    def __init__(self, run: Run, parts: Sequence[list[ChunkRef]], deployment: DeploymentResponse, log: Any) -> None:
        self._run, self._deployment, self._log = run, deployment, log
        self._settings = read_settings(run.state)
        self._files = ShardFiles(impatient(run.state), run.run_no)
        self._queue = deque(Shard(number, refs) for number, refs in enumerate(parts, 1))
        self._attempts = {str(shard.number): shard.attempt for shard in self._queue}
        self._active: list[ShardHandle] = []
        self._submitting = False  # a shard is neither in the queue nor active
        self._to_record: list[tuple[UUID, State[Any]]] = []  # ends that Prefect does not have yet
        self._taken_over: deque[ShardHandle] = deque()  # from the workers, and maybe not said why
        self._warned: set[str] = set()
        self._refusals = 0
        self._written: SharedOrders | None = None
        self._lock = threading.RLock()
        self._closing = threading.Event()
        run.pool.elsewhere = lambda: sum(handle.processes for handle in list(self._active))
        # context variables hold Prefect's settings, and the flow run that shards are linked to
        work = contextvars.copy_context().run
        self._thread = threading.Thread(target=work, args=(self._follow,), name="ferry-shards", daemon=True)

    # --- chunks for this machine, called by tasks.transfer

    @property
    def is_open(self) -> bool:
        """Whether a shard is still to be done, or another machine is at one."""
        return bool(self._queue or self._submitting or self._active)

    def take(self) -> Sequence[ChunkRef]:
        """Returns the chunks of the next shard, or of one that no process has begun for a while."""
        now = time.monotonic()
        with self._lock:
            for shard in [shard for shard in self._queue if shard.not_before <= now]:
                if not shard.is_doubtful or self._claim(shard):
                    self._queue.remove(shard)
                    return self._own(shard)
            for handle in [handle for handle in self._active if self._is_late(handle, now)]:
                if self._claim(handle.shard):
                    state: State[Any] = Cancelled(message="no worker had begun this shard; the run transfers it")
                    self._drop(handle, state)
                    self._taken_over.append(handle)
                    return self._own(handle.shard)
        return ()

    def _claim(self, shard: Shard) -> bool:
        """Take an attempt for the run itself, and return whether no worker has begun it. A state may not answer now."""
        with contextlib.suppress(FerryError):
            return self._files.claim(shard.number, shard.attempt)
        return False

    def _is_late(self, handle: ShardHandle, now: float) -> bool:
        return not handle.is_claimed and now - handle.submitted_at >= self._settings.unclaimed_s

    def _own(self, shard: Shard) -> Sequence[ChunkRef]:
        self._log.info("shard %d: the run itself transfers it", shard.number)
        return shard.refs

    # --- the thread

    def start(self) -> None:
        with contextlib.suppress(FerryError):  # tidying up may wait
            self._files.delete_earlier()
        if (most := self._most_machines()) < self._run.job.machines:
            self._log.warning(
                f"machines: {self._run.job.machines}, but the lowest `concurrency` limit is {most}: {most} machines "
                "work at a time. Raise it in the job, or with `ferry limits`"
            )
        self._run.runtime.progress.window_s = BEATS_IN_A_RATE * self._settings.look_s
        self._thread.start()

    def close(self) -> None:
        """End all shards that are left, and wait for them as long as `stop_s`."""
        if self._active and not self._run.runtime.stopping:
            self._run.runtime.request_stop("the run has ended")
        self._closing.set()
        self._thread.join()
        self._run.pool.machines.clear()
        for shard in [*(handle.shard for handle in self._active), *self._queue]:
            for ref in shard.refs:
                self._run.incomplete.setdefault(ref.digest, self._run.runtime.stop_reason)

    def _follow(self) -> None:
        looked = float("-inf")
        while not self._run.runtime.stopping and not self._closing.wait(TICK_S if looked > 0 else 0):
            if time.monotonic() - looked >= self._settings.look_s:
                try:
                    self._look()
                except Exception as error:  # noqa: BLE001 - without this thread, the run would wait for ever
                    self._fail(error if isinstance(error, FerryError) else Fatal(f"unexpected {error!r}"))
                looked = time.monotonic()
            self._write_orders()
            self._explain_taken_over()
            self._record_ends()
        self._stop()
        self._explain_taken_over()
        self._record_ends()

    def _stop(self) -> None:
        """Wait until each attempt has written its end; end at Prefect what has not begun, or does not answer."""
        deadline = time.monotonic() + self._settings.stop_s
        reason = self._run.runtime.stop_reason or "the run has ended"
        while self._active and time.monotonic() < deadline:
            self._write_orders()
            with contextlib.suppress(FerryError):
                names = self._files.names()
                for handle in list(self._active):
                    silent_s = handle.look(self._files, names)
                    if handle.end is not None:
                        self._finish(handle, handle.end)
                    elif not handle.is_claimed:  # a process that begins it now reads the order to stop
                        self._give_up(handle, Cancelled(message=f"{reason}; no process had begun this shard"))
                    elif silent_s >= self._settings.silent_s:
                        self._give_up(handle, Crashed(message=f"{reason}; its process does not answer"))
            time.sleep(TICK_S)
        for handle in list(self._active):
            self._give_up(handle, Crashed(message=f"{reason}; its process did not end in time"))

    def _look(self) -> None:
        """Read what the shards have written, deal with those that have ended or died, and submit others."""
        runs = self._runs_at_prefect()  # before the beats: an attempt writes its end before Prefect has it
        try:
            names = self._files.names()
            for handle in list(self._active):
                silent_s = handle.look(self._files, names)
                with self._lock:
                    if handle in self._active:  # and the main thread has not taken it meanwhile
                        self._look_at(handle, silent_s, runs.get(handle.flow_run))
        except Damaged:  # a file with outcomes: no later look would read it either
            raise
        except FerryError as error:  # the state does not answer this process: it cannot judge others by their silence
            self._warn_once("follow", f"the shards cannot be followed at the moment: {error}")
            for handle in list(self._active):
                handle.excuse()
            return
        self._warned.discard("follow")
        self._run.pool.machines[:] = list(self._active)
        self._fill()

    def _look_at(self, handle: ShardHandle, silent_s: float, run: FlowRun | None) -> None:
        if handle.end is not None:
            self._finish(handle, handle.end)
            return
        state = run.state if run is not None else None
        if state is not None and state.is_final():
            message = state.message or state.name or ""
            handle.is_recorded = True
            if not handle.is_claimed:
                self._refused(handle, message.removeprefix("UserError: "))
            else:
                crashed = state.type is not StateType.CANCELLED
                self._again(handle, f"ended at Prefect without an answer ({message})", crashed=crashed)
        elif silent_s >= self._settings.silent_s:
            self._again(handle, f"has been silent for {silent_s:.0f} s", crashed=True)
        elif not handle.is_claimed:
            self._hint(handle, state.name or "" if state is not None else "")

    def _hint(self, handle: ShardHandle, state: str) -> None:
        """Say why no worker has begun a shard, after a while."""
        if time.monotonic() - handle.submitted_at >= self._settings.hint_s and (hint := self._new_hint(handle, state)):
            self._log.warning(f"shard {handle.shard.number} waits, and the run continues without it: {hint}")

    def _explain_taken_over(self) -> None:
        """Say why no worker had begun a shard that the run took before any look could say it: looks may be slow."""
        while self._taken_over:
            handle = self._taken_over.popleft()
            if not handle.hint and (hint := self._new_hint(handle, "")):
                self._log.warning(f"shard {handle.shard.number} waited, and the run transfers it itself: {hint}")

    def _new_hint(self, handle: ShardHandle, state: str) -> str:
        """Returns why no worker has begun a shard, if that can be told and was not said yet."""
        with contextlib.suppress(*prefect_api.API_ERRORS), prefect_api.polling_client() as client:
            hint = work_pools.look(client, state, self._deployment.work_pool_name) or ""
            before, handle.hint = handle.hint, hint
            return hint if hint != before else ""
        return ""

    def _runs_at_prefect(self) -> dict[UUID, FlowRun]:
        with contextlib.suppress(*prefect_api.API_ERRORS), prefect_api.polling_client() as client:
            return prefect_runs.runs_of(client, [handle.flow_run for handle in self._active])
        return {}

    # --- what becomes of an attempt

    def _finish(self, handle: ShardHandle, end: End) -> None:
        """Take over what an attempt says that it has done."""
        if end.kind == "refused":
            self._refused(handle, end.message)
            return
        if end.kind in ("left", "machine") and not self._run.runtime.stopping:
            self._again(handle, end.message, crashed=end.kind == "machine")
            return
        run = self._run
        run.returned += end.returned
        run.cached += end.cached
        run.incomplete.update(end.incomplete)
        run.task_runs.update(end.task_runs)
        run.needs_repair = run.needs_repair or end.needs_repair
        run.chunk_problems.extend(ChunkProblem(*problem) for problem in end.problems)
        self._drop(handle)
        if end.kind == "job":
            self._fail(Fatal(end.message))

    def _again(self, handle: ShardHandle, why: str, *, crashed: bool) -> None:
        """Have another process continue a shard. The old one stops at its next look, if it lives."""
        shard, limit = handle.shard, self._settings.most_crashes
        words = f"shard {shard.number}, attempt {handle.attempt}: its process {why}"
        recorded: Recorded = {}
        if handle.is_claimed:
            for ref in shard.refs:
                if ref.done < ref.rows:
                    recorded |= recorded_of(self._run.state, self._run.run_no, ref.digest)
            handle.count_again(recorded)
        if crashed:
            shard.count_crash(len(recorded))
        with self._lock:
            shard.attempt += 1
            shard.is_doubtful = False
            self._attempts[str(shard.number)] = shard.attempt
            shard.not_before = time.monotonic() + (self._settings.look_s if handle.is_claimed else 0.0)
            self._queue.appendleft(shard)
        crash: State[Any] = Crashed(message=f"{why}; another process continues the shard")
        self._drop(handle, None if handle.end is not None or handle.is_recorded else crash)
        if crashed and shard.crashes >= limit:
            self._fail(
                Fatal(f"{words}. It was crash {limit} without a new outcome: read the log of its runs at Prefect")
            )
            return
        self._log.warning("%s; another process continues it", words)

    def _refused(self, handle: ShardHandle, why: str) -> None:
        self._refusals += 1
        self._again(handle, f"cannot take part: {why}", crashed=False)
        if self._refusals == self._settings.most_refusals:
            self._log.warning(
                f"{self._refusals} processes could not take part; the run submits no more shards and continues alone"
            )

    def _drop(self, handle: ShardHandle, state: State[Any] | None = None) -> None:
        """Follow an attempt no longer. Prefect is to have ``state``, unless the attempt sets its own."""
        with self._lock:
            self._active.remove(handle)
            handle.has_died = True
            if state is not None:
                self._to_record.append((handle.flow_run, state))

    def _give_up(self, handle: ShardHandle, state: State[Any]) -> None:
        """Leave the chunks of an attempt to the next run."""
        self._queue.append(handle.shard)
        self._drop(handle, state)

    def _record_ends(self) -> None:
        with self._lock:
            ends, self._to_record = self._to_record, []
        for flow_run, state in ends:
            with contextlib.suppress(*prefect_api.API_ERRORS), prefect_api.polling_client() as client:
                prefect_runs.end(client, flow_run, state)

    def _fail(self, error: FerryError) -> None:
        self._run.errors.append(error)
        self._run.runtime.abort(error)

    # --- submitting, and orders

    def _fill(self) -> None:
        """Submit shards while there are fewer attempts than other machines, and each process gets a permit."""
        others = self._most_machines() - 1
        while len(self._active) < others and self._refusals < self._settings.most_refusals:
            with self._lock:
                if not self._queue or self._run.runtime.stopping or self._run.runtime.paused:
                    return
                shard, self._submitting = self._queue.popleft(), True
            flow_run: UUID | None = None
            try:
                flow_run = self._submit(shard)
            finally:
                with self._lock:
                    self._submitting = False
                    if flow_run is not None:
                        self._active.append(ShardHandle(self._run.runtime, shard, flow_run))
                    else:
                        self._queue.appendleft(shard)
            if flow_run is None:
                return

    def _most_machines(self) -> int:
        """Returns how many machines get a permit each, of those that the job may have."""
        job = self._run.job
        concurrency = None if job.concurrency == "auto" else job.concurrency
        return most_processes(job.machines, concurrency, self._run.pool.orders().limits_in_force())

    def _submit(self, shard: Shard) -> UUID | None:
        """Returns the flow run of a shard, or None if it could not be submitted. No attempt begins without an order."""
        run = self._run
        try:
            first = int(run.places[shard.refs[0].digest].partition("-")[0])
            plan = ShardPlan(shard.refs, first, len(run.places), code_digest())
            self._files.write_plan(shard.number, plan)
            self._write_orders(now=True)
            given = run.job.model_dump(mode="json", exclude_unset=True)
            parameters = {
                "job": given, "run_no": run.run_no, "token": run.lease.token, "number": shard.number,
                "attempt": shard.attempt,
            }  # fmt: skip
            key = f"{run.lease.token}-{shard.number}-{shard.attempt}"
            name = f"{run.job.name} #{run.run_no} shard {shard.number}"
            flow_run = prefect_runs.submit(self._deployment.id, parameters, name, key)
        except (FerryError, *prefect_api.API_ERRORS) as error:
            shard.is_doubtful = True
            self._warn_once("submit", f"shard {shard.number} could not be submitted; the run tries again: {error}")
            return None
        shard.is_doubtful = False
        self._warned.discard("submit")
        self._log.info("shard %d: submitted, attempt %d, %d chunks", shard.number, shard.attempt, len(shard.refs))
        return flow_run

    def _warn_once(self, what: str, message: str) -> None:
        """Log a warning, but not again until ``what`` has succeeded."""
        if what not in self._warned:
            self._log.warning(message)
        self._warned.add(what)

    def _write_orders(self, *, now: bool = False) -> None:
        """Write the orders if they have changed. Pauses count down, so that only new ones are a change."""
        counted = {str(handle.shard.number): handle.processes for handle in list(self._active)}
        shared = SharedOrders(self._run.pool.orders(), dict(self._attempts), counted)
        if not now and self._written is not None and _same(shared, self._written):
            return
        try:
            self._files.write_orders(shared)
            self._written = shared
        except FerryError:
            if now:
                raise


def _same(one: SharedOrders, other: SharedOrders) -> bool:
    def known(shared: SharedOrders) -> Any:
        orders = shared.orders
        pauses = {host: which for host, (_, *which) in orders.pauses.items()}
        return orders.share, orders.stop, orders.paused, orders.limits, pauses, shared.attempts, shared.counted

    return bool(known(one) == known(other))


@contextlib.contextmanager
def sharing_out(
    run: Run, refs: Sequence[ChunkRef], deployment: DeploymentResponse | None, log: Any
) -> Iterator[tuple[Sequence[ChunkRef], Shards | None]]:
    """Provide the chunks that the run begins with, and its shards; without a deployment, or with few rows, none."""
    settings = read_settings(run.state) if deployment is not None else Settings()
    parts = cut(refs, run.job.machines, settings.least_rows, settings.per_machine)
    if deployment is None or len(parts) < 2:
        yield refs, None
        return
    run.number_chunks(refs)
    shards = Shards(run, parts, deployment, log)
    shards.start()
    try:
        yield [ref for ref in refs if ref.done >= ref.rows], shards
    finally:
        shards.close()
