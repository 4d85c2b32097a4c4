"""A lease in the state, which lets one run of a job work at a time (docs/decisions/0018)."""

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
from typing import Any, Literal

from ferry.core import Fatal, FerryError, LeaseHeld, UserError
from ferry.core import boot_id as _boot_id
from ferry.core import process_start as _process_start
from ferry.state.files import State

NAME = "lease.json"
LENGTH_S = 120.0
RENEW_S = 30.0
WAIT_S = 1.0  # between two reads of a lease that another run holds
# How long a lease that looks expired is watched before it is taken over: a live holder renews it every 30 s,
# whatever its clock says.
WATCH_S = 45.0
_OLD_KEYS = {"place": "boot_id", "started": "process_start"}  # before schema 4; such a run may still be running
RELEASED = 0.0  # ``expires_at`` of a released lease in a bucket, where a conditional delete is not possible


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lease. ``boot_id`` and ``process_start`` show whether it still runs on this machine."""

    host: str
    pid: int
    boot_id: str  # the machine's boot ID and the process's PID namespace
    process_start: str  # in clock ticks since boot
    run: str
    token: str
    expires_at: float  # seconds since the epoch, by the holder's clock
    flow_run: str = ""  # ID of the run at Prefect

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def steady_s() -> float:
    """Returns seconds of a monotonic clock that all processes of a machine share and that counts during suspension.

    It is CLOCK_BOOTTIME of clock_gettime(2); CLOCK_MONOTONIC stops while the machine is suspended.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def this_process(run: str, expires_at: float, flow_run: str = "") -> Holder:
    """Returns this process as a lease's holder, with a token that no other holder has."""
    start = _process_start(os.getpid()) or ""
    return Holder(socket.gethostname(), os.getpid(), _boot_id(), start, run, uuid.uuid4().hex, expires_at, flow_run)


def is_dead(boot_id: str, pid: int, process_start: str) -> bool:
    """Returns whether a process has certainly ended; False for one on another machine or in another container."""
    return bool(boot_id) and boot_id == _boot_id() and _process_start(pid) != process_start


def verdict(holder: Holder, now: float, boot_id: str, process_start: str | None) -> Literal["over", "held", "watch"]:
    """Returns whether a lease may be taken over.

    ``boot_id`` is this machine's, ``process_start`` what :func:`_process_start` says of the holder's PID here.

    | released | same boot ID | process with that PID and start | expires, by this clock | verdict |
    |---|---|---|---|---|
    | yes | any | any | any | over |
    | no | yes | no | any | over |
    | no | yes | yes | within the next 120 s | held |
    | no | yes | yes | in the past, or later than that | watch: the process may be suspended |
    | no | no | unknown | within the next 120 s | held |
    | no | no | unknown | in the past, or later than that | watch: clocks differ |

    A watched lease is over when its holder has not renewed it for WATCH_S.
    """
    if holder.expires_at == RELEASED:
        return "over"
    if boot_id and holder.boot_id == boot_id and process_start != holder.process_start:
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
        """``asked`` is a time by :func:`steady_s` before the lease was written, ``took_over`` its earlier holder."""
        self.took_over = took_over
        self._state = state
        self._holder = holder
        self._on_lost = on_lost
        self._renewed = asked
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._lost = False
        self._thread = threading.Thread(target=self._renew_until_done, name="ferry-lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        return self._holder.token

    @property
    def held(self) -> bool:
        """Whether no other run can have taken the lease yet."""
        return steady_s() < self.until

    @property
    def until(self) -> float:
        """The time by :func:`steady_s` until which the lease is held; 0.0 once it is lost."""
        return 0.0 if self._lost else self._renewed + LENGTH_S

    def regain(self) -> bool:
        """Returns ``held``, after renewing a lease that expired while this process was suspended.

        To be called before each write. The lease is lost if another run has taken it.
        """
        with self._lock:
            if self.held or self._lost:
                return self.held
            with contextlib.suppress(FerryError):
                self._renew()
            if not self.held:
                self._lose()
            return self.held

    def _renew_until_done(self) -> None:
        while not self._done.wait(RENEW_S):
            with self._lock:
                if self._lost:
                    return
                try:
                    renewed = self._renew()
                except FerryError:  # of the disk or the network; there is time to try again until the lease expires
                    renewed = self.held
                if not renewed:
                    self._lose()
                    return

    def _renew(self) -> bool:
        """Extends the lease in the state; returns False when another run has taken it."""
        asked = steady_s()
        new = replace(self._holder, expires_at=time.time() + LENGTH_S)
        if not self._state.swap(NAME, self._holder.encode(), new.encode()):
            # An earlier swap may have succeeded although its response was lost: then the file has this token.
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
        """Stops renewing the lease and gives it up, unless it is lost."""
        self._done.set()
        self._thread.join()
        if not self._lost:
            released = replace(self._holder, expires_at=RELEASED)
            with contextlib.suppress(FerryError):
                self._state.drop(NAME, self._holder.encode(), released.encode())


class Borrowed:
    """The lease in another process of the run, valid until the time that the holding process last sent."""

    PATIENCE_S = 10.0  # after a suspension both processes resume at once; the holder then sends a new time

    def __init__(self, patience_s: float | None = None) -> None:
        self.until = 0.0
        self._patience_s = self.PATIENCE_S if patience_s is None else patience_s

    @property
    def held(self) -> bool:
        """Whether no other run can have taken the lease yet."""
        return steady_s() < self.until

    def regain(self) -> bool:
        """Returns ``held``, after waiting for a new time from the holding process."""
        deadline = steady_s() + self._patience_s
        while not self.held and steady_s() < deadline:
            time.sleep(0.1)
        return self.held


class Seen:
    """The lease of a run in another machine's process, judged by watching lease.json.

    It lasts 120 s from the moment that this process saw the file change, by its own CLOCK_BOOTTIME: no clocks are
    compared. A write also needs a look that is not older than ``fresh_s``. So a process that was suspended, or cut off
    from the state, looks before its next write, and one whose lease was taken over stops within one look.
    """

    def __init__(self, state: State, token: str, fresh_s: float, allowed: Callable[[], bool] = lambda: True) -> None:
        """``allowed`` is asked at each look; once it returns False, the lease counts as lost."""
        self._state, self.token, self._fresh_s, self._allowed = state, token, fresh_s, allowed
        self.took_over: Holder | None = None  # as of a Lease: it takes over none
        self._raw = b""
        self._changed = self._looked = float("-inf")
        self._lock = threading.Lock()
        self.lost = False

    def look(self) -> bool:
        """Reads lease.json once and returns ``held``. Raises FerryError while the state does not answer."""
        with self._lock:
            return self._look()

    def _look(self) -> bool:
        asked = steady_s()
        try:
            raw = self._state.read(NAME)
        except FileNotFoundError:  # released by the run
            raw = b""
        found = decode(raw) if raw else None
        if found is None or found.token != self.token or found.expires_at == RELEASED or not self._allowed():
            self.lost = True
        elif raw != self._raw:
            self._raw, self._changed = raw, asked
        self._looked = asked
        return self.held

    @property
    def may_be_held(self) -> bool:
        """Whether no other run can have taken the lease, as far as the last look has shown."""
        return not self.lost and steady_s() < self._changed + LENGTH_S

    @property
    def until(self) -> float:
        """The time by :func:`steady_s` until which the last look allows writes; 0.0 once the lease is lost."""
        return 0.0 if self.lost else min(self._changed + LENGTH_S, self._looked + self._fresh_s)

    @property
    def held(self) -> bool:
        """Whether the last look allows a write now."""
        return steady_s() < self.until

    def regain(self) -> bool:
        """Returns ``held`` after a new look. While the state does not answer, it tries until the lease may be over."""
        with self._lock:
            while not self.held and not self.lost:
                try:
                    return self._look()
                except FerryError:
                    if not self.may_be_held:
                        return False
                time.sleep(WAIT_S)
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
    """Takes the lease. If another run holds it, raises LeaseHeld or, with ``wait``, tries again until it is free.

    It also waits for a process of the same ``flow_run``: that run was paused and resumed, and its old process is
    ending. An expired lease of a process that this machine cannot see is watched for WATCH_S before it is taken over.
    ``tell`` receives a message when a lease is watched and when a run waits. Raises UserError for a store without
    conditional writes.
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
        waits = wait or (flow_run != "" and other.flow_run == flow_run)
        found = verdict(other, time.time(), _boot_id(), _process_start(other.pid))
        if found == "watch" and raw != watched:
            if watched and not waits:
                raise LeaseHeld(_held_by(other))  # its holder renewed it
            watched, since = raw, asked
            tell(
                f"{other.run} (process {other.pid} on {other.host}) may be dead: it has not renewed its lease on the "
                f"state in time. Ferry watches the lease for {WATCH_S:.0f} s before taking it over"
            )
        elif found == "watch" and asked - since >= WATCH_S:
            found = "over"
        if found == "over":
            if state.swap(NAME, raw, mine.encode()):
                return Lease(state, mine, asked, on_lost, other if other.expires_at != RELEASED else None)
            continue  # another run was quicker; the next read shows which
        if found == "held" and not waits:
            raise LeaseHeld(_held_by(other))
        if found == "held" and other.token != awaited:
            awaited = other.token
            tell(f"waiting for another run of this job to end: {other.run} (process {other.pid} on {other.host})")
        time.sleep(WAIT_S)


def _held_by(other: Holder) -> str:
    return (
        f"another run of this job is running: {other.run} (process {other.pid} on {other.host}). "
        "Wait for it with `--wait`, or see its progress with `ferry status`"
    )


def check_lease(state: State, token: str) -> Holder:
    """Returns the lease's holder from the state. Raises Fatal unless it has ``token``.

    To be called before a write that later runs depend on.
    """
    with contextlib.suppress(FileNotFoundError):
        if (found := decode(state.read(NAME))).token == token:
            return found
    raise Fatal("this run lost its lease on the state to another run and writes nothing more. Run the job again later")


def decode(raw: bytes) -> Holder:
    """Returns the holder that a lease file names. Raises UserError for a damaged file: it may or may not be held."""
    try:
        found: dict[str, Any] = json.loads(raw)
        holder = Holder(**{_OLD_KEYS.get(key, key): value for key, value in found.items()})
        if not all(isinstance(value, str) for value in (holder.host, holder.boot_id, holder.run, holder.token)):
            raise TypeError
        float(holder.expires_at), int(holder.pid)
    except (ValueError, TypeError):
        raise UserError(
            f"{NAME} in the state is damaged. If no other run of this job is running, delete the file and try again"
        ) from None
    return holder


def lease_holder(state: State) -> Holder | None:
    """Returns the holder of a lease that has not expired, or None, from one read. For `ferry status`."""
    try:
        holder = decode(state.read(NAME))
    except FileNotFoundError:
        return None
    found = verdict(holder, time.time(), _boot_id(), _process_start(holder.pid))
    return None if found == "over" or time.time() >= holder.expires_at else holder


def refuse_held(state: State) -> None:
    """Raises LeaseHeld if another live run holds the lease, by one read: before a command prepares anything."""
    with contextlib.suppress(FileNotFoundError):
        holder = decode(state.read(NAME))
        if verdict(holder, time.time(), _boot_id(), _process_start(holder.pid)) == "held":
            raise LeaseHeld(_held_by(holder))


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
    """Holds the lease during the block; arguments and errors are those of :func:`acquire_lease`."""
    lease = acquire_lease(state, run, on_lost, flow_run=flow_run, wait=wait, tell=tell)
    try:
        yield lease
    finally:
        lease.release()
