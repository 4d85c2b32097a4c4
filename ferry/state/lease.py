"""One run at a time: a lease in the state (SEMANTICS: one run at a time; docs/decisions/0018)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ferry.core import Fatal, FerryError, LeaseHeld, UserError
from ferry.state.files import State

NAME = "lease.json"
LENGTH_S = 120.0
RENEW_S = 30.0
WAIT_S = 1.0  # between two looks at a lease that another run holds
WATCH_S = (
    45.0  # a lease that looks expired is watched so long: its holder renews it every 30 s, whatever its clock says
)
_OLD_KEYS = {"place": "boot_id", "started": "process_start"}  # of an earlier Ferry, whose run may still be on
RELEASED = 0.0  # ``expires_at`` of a lease that its holder gave back, where a file cannot be deleted on a condition


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds it. ``boot_id`` and ``process_start`` tell whether the process still lives, on this machine."""

    host: str
    pid: int
    boot_id: str  # the machine's boot and the process namespace
    process_start: str  # the process's start, in clock ticks since boot
    run: str
    token: str
    expires_at: float  # seconds since the epoch, by the holder's clock
    flow_run: str = ""  # Prefect's ID of the run

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def steady_s() -> float:
    """Seconds of a clock that nobody sets, the same in all processes of a machine; it counts while the machine sleeps.

    (time.monotonic does not: clock_gettime(2), CLOCK_BOOTTIME.)
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def this_process(run: str, expires_at: float, flow_run: str = "") -> Holder:
    started = _started(os.getpid()) or ""
    return Holder(socket.gethostname(), os.getpid(), _place(), started, run, uuid.uuid4().hex, expires_at, flow_run)


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


def is_dead(place: str, pid: int, started: str) -> bool:
    """Is the process certainly gone? Of a process on another machine, or in another container, nobody can say so."""
    return bool(place) and place == _place() and _started(pid) != started


def verdict(holder: Holder, now: float, place: str, started: str | None) -> Literal["over", "held", "watch"]:
    """May a lease be taken over? ``started`` is what this machine says of the holder's pid.

    | released | same place | its process | its end, by this clock | verdict |
    |---|---|---|---|---|
    | yes | any | any | any | over |
    | no | yes | gone, or another with its pid | any | over |
    | no | no, or alive | | within the next 120 s | held |
    | no | no, or alive | | past, or further away | watch: clocks differ, and a process may be suspended |

    A lease to be watched is over when nobody renewed it for WATCH_S.
    """
    if holder.expires_at == RELEASED:
        return "over"
    if place and holder.boot_id == place and started != holder.process_start:
        return "over"
    return "held" if now < holder.expires_at <= now + LENGTH_S else "watch"


class Lease:
    """A held lease, renewed by a thread until :meth:`release`."""

    def __init__(
        self,
        state: State,
        holder: Holder,
        asked: float,
        on_lost: Callable[[], None],
        took_over: Holder | None = None,
    ) -> None:
        """``asked``: when (:func:`steady_s`) the lease was written or earlier; ``took_over``: whose it was before."""
        self.took_over = took_over
        self._state = state
        self._holder = holder
        self._on_lost = on_lost
        self._renewed = asked
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._lost = False
        self._thread = threading.Thread(target=self._renew_often, name="ferry-lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        return self._holder.token

    @property
    def held(self) -> bool:
        """False once another run may have taken it."""
        return steady_s() < self.until

    @property
    def until(self) -> float:
        """By :func:`steady_s`; 0.0 once it is lost."""
        return 0.0 if self._lost else self._renewed + LENGTH_S

    def regain(self) -> bool:
        """As ``held``, asked before each write. A holder that was suspended beyond its time looks whether anybody
        has taken the lease meanwhile, and goes on with it where not."""
        with self._lock:
            if self.held or self._lost:
                return self.held
            with contextlib.suppress(FerryError):
                self._renew()
            if not self.held:
                self._lose()
            return self.held

    def _renew_often(self) -> None:
        while not self._done.wait(RENEW_S):
            with self._lock:
                if self._lost:
                    return
                try:
                    renewed = self._renew()
                except FerryError:  # the disk or the network; until the lease ends there is time to try again
                    renewed = self.held
                if not renewed:
                    self._lose()
                    return

    def _renew(self) -> bool:
        """Prolongs it in the state; False when another run has it."""
        asked = steady_s()
        new = replace(self._holder, expires_at=time.time() + LENGTH_S)
        if not self._state.swap(NAME, self._holder.encode(), new.encode()):
            # A swap whose answer was lost may have happened all the same: then the lease is as it left it.
            try:
                found = decode(self._state.read(NAME))
            except FileNotFoundError:
                return False
            if found.token != self._holder.token or not self._state.swap(NAME, found.encode(), new.encode()):
                return False
        self._holder, self._renewed = new, asked
        return True

    def _lose(self) -> None:
        self._lost = True
        self._on_lost()

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        if not self._lost:
            given_back = replace(self._holder, expires_at=RELEASED)
            with contextlib.suppress(FerryError):
                self._state.drop(NAME, self._holder.encode(), given_back.encode())


class Borrowed:
    """The lease as another process of the run holds it, for as long as that one said last."""

    PATIENCE_S = 10.0  # after a suspension both go on at once: the holder looks, and says what it found

    def __init__(self) -> None:
        self.until = 0.0

    @property
    def held(self) -> bool:
        return steady_s() < self.until

    def regain(self) -> bool:
        deadline = steady_s() + self.PATIENCE_S
        while not self.held and steady_s() < deadline:
            time.sleep(0.1)
        return self.held


def acquire_lease(
    state: State,
    run: str,
    on_lost: Callable[[], None] = lambda: None,
    *,
    flow_run: str = "",
    wait: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Lease:
    """Takes the lease; raises LeaseHeld naming its holder, or with ``wait`` asks again until it is free.

    The same run of Prefect's in another process, which is at its end, is waited for: it was paused, and resumed.
    A lease that looks over, of a process that cannot be seen from here, is watched for WATCH_S first, and ``tell``
    hears of it; and of whom it waits for. Raises UserError for a store that cannot keep two runs apart.
    """
    state.check_conditions()
    watched, since, awaited = b"", 0.0, ""
    while True:
        asked = steady_s()
        mine = this_process(run, time.time() + LENGTH_S, flow_run)
        if state.create(NAME, mine.encode()):
            return Lease(state, mine, asked, on_lost)
        try:
            raw = state.read(NAME)
        except FileNotFoundError:
            continue
        other = decode(raw)
        patient = wait or (flow_run != "" and other.flow_run == flow_run)
        found = verdict(other, time.time(), _place(), _started(other.pid))
        if found == "watch" and raw != watched:
            if watched and not patient:
                raise LeaseHeld(_held_by(other))  # somebody renewed it
            watched, since = raw, asked
            tell(
                f"{other.run} (process {other.pid} on {other.host}) may be dead: its lease on the state has not been "
                f"renewed in time. Watching it for {WATCH_S:.0f} s before it is taken over"
            )
        elif found == "watch" and asked - since >= WATCH_S:
            found = "over"
        if found == "over":
            if state.swap(NAME, raw, mine.encode()):
                return Lease(state, mine, asked, on_lost, other if other.expires_at != RELEASED else None)
            continue  # another run was quicker; who it is, the next look says
        if found == "held" and not patient:
            raise LeaseHeld(_held_by(other))
        if found == "held" and other.token != awaited:
            awaited = other.token
            tell(f"waiting for another run of this job to end: {other.run} (process {other.pid} on {other.host})")
        time.sleep(WAIT_S)


def _held_by(other: Holder) -> str:
    return (
        f"another run of this job is on: {other.run} (process {other.pid} on {other.host}). "
        "Wait for it (`--wait`), or look at it with `ferry status`"
    )


def check_lease(state: State, token: str) -> Holder:
    """Asks the state itself who holds the lease, before a write that others build on. Raises Fatal if another does."""
    with contextlib.suppress(FileNotFoundError):
        if (found := decode(state.read(NAME))).token == token:
            return found
    raise Fatal("this run lost its lease on the state to another run; it writes nothing more")


def decode(raw: bytes) -> Holder:
    """Raises UserError for a damaged lease: nobody can say whether it is held."""
    try:
        found: dict[str, Any] = json.loads(raw)
        holder = Holder(**{_OLD_KEYS.get(key, key): value for key, value in found.items()})
        if not all(isinstance(value, str) for value in (holder.host, holder.boot_id, holder.run, holder.token)):
            raise TypeError
        float(holder.expires_at), int(holder.pid)
    except (ValueError, TypeError):
        raise UserError(
            f"{NAME} in the state is damaged. If no other run of this job is on, delete it and try again"
        ) from None
    return holder


def lease_holder(state: State) -> Holder | None:
    """Who runs the job now, as far as one look can tell, or None. For `ferry status`; it changes nothing."""
    try:
        other = decode(state.read(NAME))
    except FileNotFoundError:
        return None
    over = verdict(other, time.time(), _place(), _started(other.pid)) == "over" or time.time() >= other.expires_at
    return None if over else other


@contextlib.contextmanager
def hold_lease(
    state: State,
    run: str,
    on_lost: Callable[[], None] = lambda: None,
    *,
    flow_run: str = "",
    wait: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Lease]:
    lease = acquire_lease(state, run, on_lost, flow_run=flow_run, wait=wait, tell=tell)
    try:
        yield lease
    finally:
        lease.release()
