"""The servers, and runs of contenders on them: start, watch, read the origin's log, check, remove."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks import accesslog
from benchmarks.accesslog import Window
from benchmarks.check import Verdict, compare, compare_contents, digests, store_environment
from benchmarks.library import Library, Shelf
from benchmarks.nginx import Nginx
from benchmarks.place import PEERS, environment
from benchmarks.results import Result
from benchmarks.tools import Command, Tool, Work, shown, shown_text
from benchmarks.watch import CLIENT, Watched, watch
from demo.s3 import S3Server
from flows.server.local import LocalServer

MB = 1e6
CURVE = 100
SOURCE = "source"  # the bucket that is copied from


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender in a scene."""

    tool: Tool
    library: Library
    origin: str = "origin"  # one of nginx's servers, or "s3": a bucket
    store: str = "s3"  # or one of nginx's servers, in front of it or instead of it
    cores: tuple[int, ...] = ()
    download: bool = False  # the check reads the objects, if ETags are not digests
    curve: bool = False
    folder: Path | None = None  # an existing folder, in which an earlier job has run
    keep: str = ""  # the run's folder is kept under this name, for a later scene
    again: str = ""  # runs in the folder that was kept under this name
    codes: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Patience:
    """The seconds that a run may take, and the longest wait for an idle machine before it."""

    run_s: float
    calm_s: float


class Stage:
    def __init__(
        self, folder: Path, shelf: Shelf, store: S3Server, nginx: Nginx, prefect: LocalServer, patience: Patience
    ) -> None:
        self.folder, self.shelf, self.patience = folder, shelf, patience
        self.store, self.nginx, self.prefect = store, nginx, prefect
        self.kept: dict[str, Work] = {}
        self._number = 0
        self._filled = ""

    def fresh_store(self) -> None:
        """Starts a new, empty SeaweedFS on the same ports."""
        self.store.stop(within_s=0)
        shutil.rmtree(self.store.folder / "data", ignore_errors=True)
        self.kept.clear()
        self._filled = ""
        self.store.start()

    def run(self, scene: str, entry: Entry, turn: int) -> Result:
        """Runs a contender once. A failure of the tool is an invalid result, never an exception."""
        kept = self.kept.get(entry.again)
        work = kept or self._work(entry)
        command = entry.tool.command(work)
        log = self.nginx.log(entry.origin)
        stored = self.nginx.log(entry.store)
        since, stored_since = accesslog.position(log), accesslog.position(stored)
        wait_for_calm(self.patience.calm_s)
        with self._pinned(entry.cores):
            env = environment(work.folder, **command.env)
            watched = watch(command.argv, env, work.folder, cores=entry.cores, within_s=self.patience.run_s)
        accesslog.settle()
        window = self._window(entry, work, watched, since)
        result = measure(scene, entry, turn, watched, window)
        result.command = shown(command.argv)
        puts = accesslog.read_window(stored, stored_since, "PUT") if entry.store in ("timed_s3", "sink") else Window()
        if puts.done_at:
            result.first_stored_s = puts.done_at[0] - watched.began
        if entry.store == "sink":  # it stores nothing, but its log counts
            verdict = Verdict(max(0, len(entry.library.expected) - len(puts.done_at)), 0, 0)
        else:
            verdict = self._check(entry, work, command)
        if watched.code not in entry.codes:
            result.note = f"exit code {watched.code}; "
        result.note += "" if verdict.right else str(verdict)
        result.valid = not result.note
        if not result.valid:
            result.output = shown_text(_tail(work.folder / "output.log"))
        if entry.keep and result.valid:
            self._forget(self.kept.pop(entry.keep, None))
            self.kept[entry.keep] = work
        elif not kept:
            self._clear(work, leave_folder=entry.folder is not None)
        return result

    def _work(self, entry: Entry) -> Work:
        self._number += 1
        name = f"run-{self._number:04d}"
        folder = entry.folder or self.folder / name
        folder.mkdir(exist_ok=True)
        bucket = f"to-{secrets.token_hex(4)}"
        if entry.store != "sink":
            self.store.make_bucket(bucket)
        origin = self._source(entry.library) if entry.origin == "s3" else self.nginx.url(entry.origin)
        endpoint = self.store.endpoint_url if entry.store == "s3" else self.nginx.url(entry.store)
        keys = (self.store.access_key, self.store.secret_key)
        return Work(folder, entry.library, origin, endpoint, bucket, name, keys, self.prefect.url)

    def _source(self, library: Library) -> str:
        """Returns the bucket to copy from, which is filled once."""
        if self._filled != library.name:
            self.store.make_bucket(SOURCE)
            env = environment(self.folder, **store_environment(self.store.endpoint_url, self._keys))
            command = [
                str(PEERS / "rclone"), "copy", str(self.shelf.root / library.name), f"store:{SOURCE}/{library.name}",
                "--transfers", "32", "--no-traverse", "--s3-no-head",
            ]  # fmt: skip
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self._filled = library.name
        return f"s3://{SOURCE}/{library.name}"

    @property
    def _keys(self) -> tuple[str, str]:
        return self.store.access_key, self.store.secret_key

    def _window(self, entry: Entry, work: Work, watched: Watched, since: int) -> Window:
        if entry.origin != "s3":
            window = accesslog.read_window(self.nginx.log(entry.origin), since)
            if entry.tool.is_ferry and window.done_at:  # large bodies may be downloaded but not stored yet
                window.last = max(window.last, ledger_window(work.folder / ".ferry").last)
            return window
        if entry.tool.is_ferry:
            return ledger_window(work.folder / ".ferry")
        return Window(watched.began, watched.ended)

    def _check(self, entry: Entry, work: Work, command: Command) -> Verdict:
        if command.local is not None:
            found = digests(str(command.local), {}, self.folder)
            images = {path: md5 for path, md5 in found.items() if path.endswith(".jpg")}
            return compare_contents(entry.library.expected, images)
        place = f"store:{work.bucket}/{work.prefix}" + (f"/{command.below}" if command.below else "")
        env = store_environment(self.store.endpoint_url, self._keys)
        return compare(entry.library.expected, digests(place, env, self.folder, download=entry.download))

    @contextlib.contextmanager
    def _pinned(self, cores: Sequence[int]) -> Iterator[None]:
        """Gives nginx the other cores while a client is pinned to some."""
        every = set(range(os.cpu_count() or 1))
        others = every - set(cores)
        if cores and others:
            self.nginx.pin(others)
        try:
            yield
        finally:
            if cores and others:
                self.nginx.pin(every)

    def _forget(self, kept: Work | None) -> None:
        if kept:
            self._clear(kept, leave_folder=False)

    def _clear(self, work: Work, *, leave_folder: bool) -> None:
        """Removes the run's files, and writes dirty pages now, not during the next run."""
        with contextlib.suppress(ClientError, BotoCoreError):
            self.store.client().delete_bucket(Bucket=work.bucket)
        if not leave_folder:
            shutil.rmtree(work.folder, ignore_errors=True)
        os.sync()


def wait_for_calm(within_s: float) -> None:
    """Waits until the machine is nearly idle: servers still process the data of the last run."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        idle, before = _idle_s(), time.monotonic()
        time.sleep(0.25)
        if _idle_s() - idle >= 0.9 * (os.cpu_count() or 1) * (time.monotonic() - before):
            return


def _idle_s() -> float:
    numbers = Path("/proc/stat").read_text().split(None, 6)
    return (int(numbers[4]) + int(numbers[5])) / os.sysconf("SC_CLK_TCK")  # idle and iowait


def _tail(log: Path) -> str:
    return "\n".join(line[:200] for line in log.read_text(errors="replace").splitlines()[-8:])


def ledger_window(state: Path) -> Window:
    """Returns the window by Ferry's ledger, for origins without a log: first ``started_at`` to last outcome."""
    window = Window()
    files = [*state.glob("*/outcomes/*.parquet"), *state.glob("*/ledger/*.parquet")]
    for file in files:
        table = pq.read_table(file, columns=["started_at", "recorded_at", "status"])
        table = table.filter(pc.equal(table["status"], "copied"))
        if table.num_rows:
            first = pc.min(table["started_at"]).as_py().timestamp()
            window.first = min(first, window.first or first)
            window.last = max(pc.max(table["recorded_at"]).as_py().timestamp(), window.last)
    return window


def measure(scene: str, entry: Entry, turn: int, watched: Watched, window: Window) -> Result:
    """Returns the numbers of a run, which is not verified yet."""
    count = len(entry.library.paths)
    result = Result(
        scene, entry.tool.name, turn, count, valid=False, note="", code=watched.code, wall_s=watched.wall_s,
        cpu_ms=watched.cpu_s.get(CLIENT, 0.0) / count * 1000, cpu_s=watched.cpu_s,
        peak_mb={role: size / MB for role, size in watched.peak.items()},
        statuses={str(status): number for status, number in sorted(window.statuses.items())},
        refused_later=window.refused_later,
    )  # fmt: skip
    if window.steady_s <= 0:
        return result
    result.steady_s = window.steady_s
    if window.done_at or entry.tool.is_ferry:  # otherwise the fixed part is unknown
        result.fixed_s = watched.wall_s - window.steady_s
    result.rate = (len(window.done_at) or count) / window.steady_s
    result.megabytes_s = entry.library.bytes / window.steady_s / MB
    result.steady_cpu_ms = watched.cpu_between(window.first, window.last) / count * 1000
    if entry.curve and len(window.done_at) >= CURVE * 2:
        _add_curve(result, watched, window)
    return result


def _add_curve(result: Result, watched: Watched, window: Window) -> None:
    done, step = window.done_at, len(window.done_at) // CURVE
    edges = [window.first] + [done[(number + 1) * step - 1] for number in range(CURVE)]
    result.curve = [step / max(b - a, 1e-3) for a, b in itertools.pairwise(edges)]
    during = [sample for sample in watched.samples if window.first <= sample.at <= window.last]
    every = max(1, len(during) // 200)
    result.memory = [(sample.at - window.first, sample.rss / MB) for sample in during[::every]]
    tenth = done[len(done) // 10]
    at_tenth = max((sample.rss for sample in during if sample.at <= tenth), default=0)
    at_end = max((sample.rss for sample in during if sample.at >= done[-len(done) // 10]), default=0)
    result.memory_at = {"a tenth": at_tenth / MB, "the end": at_end / MB}
