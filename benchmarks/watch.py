"""Measurement of a command's processes: CPU time and memory of each role, every 50 ms.

A role is the client or, with Ferry, the planner process and the Prefect server that Ferry started. These are not part
of the transfer and have rows of their own. A command without such children has one role.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PERIOD_S, TREE_S = 0.05, 0.25
CLIENT, PLANNER, SERVER = "client", "planner", "server"
_MARKS = ((b"ferry.processes.planner_process", PLANNER), (b"flows.server.serve", SERVER))
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    at: float  # seconds since the epoch, as in nginx's log
    cpu_s: float  # of the client so far
    rss: int  # bytes, of the client


@dataclass(slots=True)
class Watched:
    """The resources that a command used, in bytes and seconds."""

    code: int
    began: float
    ended: float
    cpu_s: dict[str, float]
    peak: dict[str, int]
    samples: list[Sample] = field(repr=False)

    @property
    def wall_s(self) -> float:
        return self.ended - self.began

    def cpu_between(self, first: float, last: float) -> float:
        """Returns the CPU seconds of the client between two moments, interpolated."""
        return self._cpu_at(last) - self._cpu_at(first)

    def _cpu_at(self, moment: float) -> float:
        after = bisect_left(self.samples, moment, key=lambda sample: sample.at)
        if after == 0:
            return 0.0
        if after == len(self.samples):
            return self.samples[-1].cpu_s
        a, b = self.samples[after - 1], self.samples[after]
        return a.cpu_s + (b.cpu_s - a.cpu_s) * (moment - a.at) / (b.at - a.at)


@dataclass(slots=True)
class _Process:
    role: str
    cpu_s: float = 0.0
    rss: int = 0
    peak: int = 0
    alive: bool = True


class _Sampler(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(name="sampler", daemon=True)
        self.main = pid
        self.processes: dict[int, _Process] = {}
        self.samples: list[Sample] = []
        self.peak: dict[str, int] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        tree_at = 0.0
        while not self.ended.is_set():
            now = time.monotonic()
            if now >= tree_at:
                self._find_processes()
                tree_at = now + TREE_S
            self.sample()
            self.ended.wait(PERIOD_S)

    def sample(self) -> None:
        at = time.time()
        for pid, process in self.processes.items():
            if process.alive:
                self._read(pid, process)
        rss: dict[str, int] = {}
        for process in self.processes.values():
            rss[process.role] = rss.get(process.role, 0) + process.rss
        for role, size in rss.items():
            self.peak[role] = max(size, self.peak.get(role, 0))
        self.samples.append(Sample(at, self.cpu_s().get(CLIENT, 0.0), rss.get(CLIENT, 0)))

    def cpu_s(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for process in self.processes.values():
            total[process.role] = total.get(process.role, 0.0) + process.cpu_s
        return total

    def peaks(self) -> dict[str, int]:
        """Returns the peaks: for one process the kernel's high-water mark, for several the highest measured sum."""
        peaks = dict(self.peak)
        for process in self.processes.values():
            peaks[process.role] = max(peaks.get(process.role, 0), process.peak)
        return peaks

    def _read(self, pid: int, process: _Process) -> None:
        try:
            numbers = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
            status = Path(f"/proc/{pid}/status").read_bytes()
        except OSError:  # it has ended and was waited for
            process.alive, process.rss = False, 0
            return
        process.cpu_s = (int(numbers[11]) + int(numbers[12])) / _TICK
        if process.role == PLANNER:  # works in forks, some too short to be sampled
            process.cpu_s += (int(numbers[13]) + int(numbers[14])) / _TICK
        process.rss = memory_bytes(status, b"VmRSS:")
        process.peak = max(process.peak, memory_bytes(status, b"VmHWM:"))

    def _find_processes(self) -> None:
        todo = [self.main]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                role = next((role for mark, role in _MARKS if mark in command), CLIENT)
                known = self.processes.setdefault(pid, _Process(role))
                if command:  # a zombie has none
                    known.role = role
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        todo += map(int, (task / "children").read_text().split())
        # the planner's own numbers include a fork that it has waited for
        for pid, process in self.processes.items():
            if process.role == PLANNER and not process.alive and pid != self._first(PLANNER):
                process.cpu_s = 0.0

    def end_servers(self) -> None:
        """Ends the Prefect servers that the command left running."""
        for pid, process in self.processes.items():
            with contextlib.suppress(OSError):
                if process.role == SERVER and _MARKS[1][0] in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def _first(self, role: str) -> int:
        return next(pid for pid, process in self.processes.items() if process.role == role)


def memory_bytes(status: bytes, name: bytes) -> int:
    """Returns a size of /proc/PID/status (proc(5)). VmHWM is the peak of this process; ru_maxrss has its parent's."""
    after = status.partition(name)[2]
    return int(after.split(None, 1)[0]) * 1024 if after else 0


def watch(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    *,
    cores: Sequence[int] | None = None,
    within_s: float = 3600.0,
) -> Watched:
    """Runs a command with its output in ``cwd``/output.log. After ``within_s`` seconds it is killed."""
    tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # it ends if the bench is killed
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    with (cwd / "output.log").open("wb") as log:
        began = time.time()
        process = subprocess.Popen(
            [*tied, *pinned, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=env, cwd=cwd, start_new_session=True,
        )  # fmt: skip
    sampler = _Sampler(process.pid)
    sampler.start()
    killer = threading.Timer(within_s, _kill, (process.pid,))
    killer.daemon = True
    killer.start()
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # the CPU time of a zombie can still be read
        ended = time.time()
    finally:
        killer.cancel()
        sampler.ended.set()
        sampler.join()
        if process.returncode is None and not _is_zombie(process.pid):
            _end(process.pid)
        sampler.sample()
        code = process.wait()
        sampler.end_servers()  # the next command pays for a server of its own
    return Watched(code, began, ended, sampler.cpu_s(), sampler.peaks(), sampler.samples)


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"Z"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _end(pid: int) -> None:
    """Ends the command of an interrupted bench, by SIGINT and then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGINT)
    for _ in range(40):
        if _is_zombie(pid):
            return
        time.sleep(0.05)
    _kill(pid)
