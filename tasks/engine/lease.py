"""One run at a time: a lease in the state (SEMANTICS: one run at a time)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.engine.errors import FerryError, LeaseHeld, UserError
from tasks.engine.state import State

NAME = "lease.json"
LENGTH_S = 120.0
RENEW_S = 30.0
WAIT_S = 1.0  # between two looks at a lease that another run holds


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds it. ``place`` and ``started`` tell whether the process still lives, on this machine."""

    host: str
    pid: int
    place: str  # the machine's boot and the process namespace
    started: str  # the process's start, in clock ticks since boot
    run: str
    token: str
    expires_at: float  # seconds since the epoch, by the holder's clock

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def this_process(run: str, expires_at: float) -> Holder:
    return Holder(
        socket.gethostname(), os.getpid(), _place(), _started(os.getpid()) or "", run, uuid.uuid4().hex, expires_at
    )


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat (proc(5)); None when there is no such process, "" where /proc is not."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def is_over(holder: Holder, now: float, place: str, started: str | None) -> bool:
    """May a lease be taken over? ``started`` is what this machine says of the holder's pid.

    | expired | same place | process | over |
    |---|---|---|---|
    | yes | any | any | yes |
    | no | no | cannot be seen | no |
    | no | yes | gone, or another with its pid | yes |
    | no | yes | alive | no |
    """
    if now >= holder.expires_at:
        return True
    return bool(place) and holder.place == place and started != holder.started


class Lease:
    """A held lease, renewed by a thread until :meth:`release`."""

    def __init__(self, state: State, holder: Holder, on_lost: Callable[[], None]) -> None:
        self._state = state
        self._holder = holder
        self._on_lost = on_lost
        self._renewed = time.monotonic()
        self._done = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, name="ferry-lease", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """False once another run may have taken it: asked before each write to the state."""
        return time.monotonic() < self.until

    @property
    def until(self) -> float:
        """Monotonic seconds, the same in all processes of a machine; 0.0 once it is lost."""
        left_s = min(self._renewed + LENGTH_S - time.monotonic(), self._holder.expires_at - time.time())
        return time.monotonic() + left_s if left_s > 0 and not self._lost else 0.0

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            old = self._holder
            asked = time.monotonic()
            new = Holder(**{**asdict(old), "expires_at": time.time() + LENGTH_S})
            try:
                if self.held and self._state.swap(NAME, old.encode(), new.encode()):
                    self._holder, self._renewed = new, asked
                    continue
                if self.held and self._adopt():
                    continue
            except FerryError:
                if self.held:
                    continue  # the disk or the network; until the lease ends there is time to try again
            self._lost = True
            self._on_lost()
            return

    def _adopt(self) -> bool:
        """A swap whose answer was lost may have happened all the same: then the lease is as it left it."""
        try:
            found = decode(self._state.read(NAME))
        except FileNotFoundError:
            return False
        ours = found.token == self._holder.token
        if ours:
            self._holder = found
        return ours

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        if self.held:
            with contextlib.suppress(FerryError, FileNotFoundError):
                if self._state.read(NAME) == self._holder.encode():
                    self._state.delete([NAME])


class Borrowed:
    """The lease as another process of the run holds it, for as long as that one said last."""

    def __init__(self) -> None:
        self.until = 0.0

    @property
    def held(self) -> bool:
        return time.monotonic() < self.until


def acquire(state: State, run: str, on_lost: Callable[[], None] = lambda: None, *, wait: bool = False) -> Lease:
    """Takes the lease; raises LeaseHeld naming its holder, or with ``wait`` asks again until it is free."""
    while True:
        try:
            return _acquire(state, run, on_lost)
        except LeaseHeld:
            if not wait:
                raise
            time.sleep(WAIT_S)


def _acquire(state: State, run: str, on_lost: Callable[[], None]) -> Lease:
    mine = this_process(run, time.time() + LENGTH_S)
    for _ in range(3):
        if state.create(NAME, mine.encode()):
            return Lease(state, mine, on_lost)
        try:
            raw = state.read(NAME)
        except FileNotFoundError:
            continue
        other = decode(raw)
        if is_over(other, time.time(), _place(), _started(other.pid)) and state.swap(NAME, raw, mine.encode()):
            return Lease(state, mine, on_lost)
    raise LeaseHeld(
        f"another run of this job is on: {other.run} (process {other.pid} on {other.host}). "
        "Wait for it (`--wait`), or look at it with `ferry status`"
    )


def decode(raw: bytes) -> Holder:
    """Raises UserError for a damaged lease: nobody can say whether it is held."""
    try:
        return Holder(**json.loads(raw))
    except (ValueError, TypeError):
        raise UserError(
            f"{NAME} in the state is damaged. If no other run of this job is on, delete it and try again"
        ) from None


def holder(state: State) -> Holder | None:
    """Who runs the job now, or None. For `ferry status`; it changes nothing."""
    try:
        other = decode(state.read(NAME))
    except FileNotFoundError:
        return None
    return None if is_over(other, time.time(), _place(), _started(other.pid)) else other


@contextlib.contextmanager
def held(state: State, run: str, on_lost: Callable[[], None] = lambda: None, *, wait: bool = False) -> Iterator[Lease]:
    lease = acquire(state, run, on_lost, wait=wait)
    try:
        yield lease
    finally:
        lease.release()
