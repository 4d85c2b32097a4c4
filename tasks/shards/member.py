"""A shard's side: it looks at the run's lease and orders, and sends beats, every few seconds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace

from ferry.core import FerryError, MachineFatal, Stopped, UserError
from ferry.job import Job, Limits
from ferry.ratelimit import is_bounded
from ferry.state import Seen, State
from tasks.run import Run
from tasks.shards.files import End, Kind, Settings, ShardFiles, ShardPlan, SharedOrders, code_digest, read_settings
from tasks.workers.messages import Beat

OVER = "the run has ended, or another process has this shard"


class Member:
    """An attempt at a shard, in the process that makes it. Raises Stopped if the attempt does not count any more."""

    def __init__(self, job: Job, state: State, run_no: int, token: str, number: int, attempt: int) -> None:
        self._number, self._attempt = number, attempt
        self._files = ShardFiles(state, run_no)
        self._settings: Settings = read_settings(state)
        self._orders: SharedOrders | None = None
        self._limits, self._concurrency = job.limits, None if job.concurrency == "auto" else job.concurrency
        self._count = 0
        self._run: Run | None = None
        self._done = threading.Event()
        self.seen = Seen(state, token, self._settings.fresh_s, self._read_orders)
        if not self.seen.look() or self._orders is None:
            raise Stopped(OVER)
        if self._orders.orders.stop:
            raise Stopped(self._orders.orders.stop)

    def _read_orders(self) -> bool:
        """Returns whether this attempt counts, by the orders as they are now."""
        self._orders = self._files.read_orders()
        return self._orders is not None and self._orders.counts(self._number, self._attempt)

    def claim(self) -> ShardPlan:
        """Returns what is to be done, which no other process does. Raises Stopped, and UserError for other code."""
        plan = self._files.read_plan(self._number, code_digest())
        if not self._files.claim(self._number, self._attempt):
            raise Stopped(OVER)
        return plan

    # --- tasks.workers.pool.LimitsSource

    @property
    def limits(self) -> Limits:
        """The limits in force, as the run has ordered them."""
        return self._limits

    def update(self) -> list[str]:
        """Returns nothing: the run logs the changes."""
        if self._orders is not None:
            self._limits = self._orders.orders.limits_in_force()
        return []

    # --- while the shard is transferred

    @contextlib.contextmanager
    def serving(self, left: Callable[[], str]) -> Iterator[None]:
        """Look and send beats until the block ends, and then say how it ended.

        ``left`` returns why this process alone is to end, or "".
        """
        thread = threading.Thread(target=self._serve, name="ferry-shard", daemon=True)
        thread.start()
        problem: BaseException | None = None
        try:
            yield
        except BaseException as error:
            problem = error
            raise
        finally:
            self._done.set()
            thread.join()
            with contextlib.suppress(FerryError):  # then the run notices the silence
                self._beat(self._end(left(), problem))

    def attach(self, run: Run) -> None:
        """Have the run obey the orders from now on, and the beats tell what it does."""
        self._run = run
        run.pool.elsewhere = self.elsewhere
        self._obey(run)

    def elsewhere(self) -> int:
        """The processes of the run on other machines, as far as its own process has counted them."""
        if self._orders is None:
            return 0
        return max(0, self._orders.orders.share - self._orders.counted.get(str(self._number), 0))

    def _serve(self) -> None:
        while True:
            with contextlib.suppress(FerryError):  # the state does not answer: the lease says how long that may last
                self.seen.look()
                if self._run is not None:
                    self._obey(self._run)
                self._beat()
            if self._done.wait(self._settings.look_s):
                return

    def _obey(self, run: Run) -> None:
        """Stop once the attempt is over. With limits, wait until the other processes leave this one its part."""
        if self.seen.lost or self._orders is None:
            run.stop(OVER)
            return
        orders = self._orders.orders
        bounded = is_bounded(self._concurrency, orders.limits_in_force())
        is_waiting = bounded and str(self._number) not in self._orders.counted
        replace(orders, paused=orders.paused or is_waiting).apply(run.runtime)

    def _beat(self, end: End | None = None) -> None:
        if self.seen.lost:
            return
        self._count += 1
        beat = Beat() if self._run is None else Beat.of(self._run.runtime, self._run.pool.workers)
        self._files.write_beat(self._number, self._attempt, self._count, beat, end)

    def _end(self, left: str, problem: BaseException | None) -> End:
        stopped = self._orders.orders.stop if self._orders is not None else ""
        run = self._run
        if run is None:  # this machine could not open it
            return End("refused" if isinstance(problem, UserError) else "machine", str(problem or left))
        error = problem or next(iter(run.errors), None)
        kind: Kind = "done"
        if error is not None:
            kind = "machine" if isinstance(error, MachineFatal) or problem is not None else "job"
        elif left and not stopped:
            kind = "left"
        return End(
            kind, str(error or left or stopped), list(run.returned), run.cached, dict(run.incomplete),
            dict(run.task_runs), run.needs_repair, [list(astuple(problem)) for problem in run.chunk_problems],
        )  # fmt: skip
