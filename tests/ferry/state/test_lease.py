"""A lease is held by one run at a time: who may take it, and when it is lost."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import Fatal, FerryError, LeaseHeld
from ferry.state import lease
from ferry.state.bucket import open_state
from ferry.state.files import DirectoryState, State
from ferry.state.lease import NAME, Holder, acquire_lease, decode, hold_lease, is_dead, this_process, verdict
from tests.support.helpers import access

pytestmark = pytest.mark.matrix

HOLDER = Holder("host", 42, "boot/ns", "100", "nightly", "token", 1000.0)


@pytest.fixture(params=["directory", "bucket"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    if request.param == "directory":
        return DirectoryState(tmp_path / "state")
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    return open_state(f"s3://{bucket}/state", access(s3), tmp_path / "cache")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sets the renewal interval to 50 ms."""
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    return iter(())


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("now", "boot_id", "process_start", "expected"),
    [
        (999.9, "elsewhere", None, "held"),
        (999.9, "elsewhere", "7", "held"),
        (999.9, "", None, "held"),
        (999.9, "boot/ns", "100", "held"),
        (880.0, "elsewhere", None, "held"),
        (999.9, "boot/ns", None, "over"),
        (999.9, "boot/ns", "101", "over"),
        (1000.0, "boot/ns", None, "over"),
        (1000.0, "boot/ns", "100", "watch"),
        (1000.0, "elsewhere", None, "watch"),
        (1000.1, "", "", "watch"),
        (879.9, "elsewhere", None, "watch"),
        (0.0, "elsewhere", None, "watch"),
    ],
)
def test_when_a_lease_is_over(now: float, boot_id: str, process_start: str | None, expected: str) -> None:
    """The table of verdict: a dead process's lease is over at once, an expired one is watched."""
    assert verdict(HOLDER, now, boot_id, process_start) == expected


def test_a_lease_that_was_given_back_is_over() -> None:
    """A released lease in a bucket is over, by any clock and for any process."""
    assert verdict(replace(HOLDER, expires_at=lease.RELEASED), 1e9, "boot/ns", "100") == "over"


def test_a_place_that_is_unknown_proves_nothing() -> None:
    """Without boot IDs a lease is held until it expires."""
    assert verdict(replace(HOLDER, boot_id=""), 999.0, "", None) == "held"


def test_the_second_run_is_refused_and_told_by_whom(state: State) -> None:
    """LeaseHeld names run, process and host of the holder, and a released lease can be taken."""
    with hold_lease(state, "first run"):
        with pytest.raises(LeaseHeld, match=r"first run \(process \d+ on "):
            acquire_lease(state, "second run")
        found = lease.lease_holder(state)
        assert found is not None
        assert found.run == "first run"
    assert lease.lease_holder(state) is None
    with hold_lease(state, "third run") as third:
        assert third.took_over is None
    assert lease.lease_holder(state) is None


def test_a_held_lease_is_seen_by_one_read(state: State) -> None:
    """A command is refused by a live run before it prepares anything; a lease that may be free is not its business."""
    lease.refuse_held(state)
    with hold_lease(state, "first run"), pytest.raises(LeaseHeld, match=r"first run \(process \d+ on "):
        lease.refuse_held(state)
    lease.refuse_held(state)
    for free in (replace(HOLDER, expires_at=time.time() - 1), replace(HOLDER, expires_at=time.time() + 1e6)):
        state.write(NAME, free.encode())
        lease.refuse_held(state)


def test_held_waits_only_where_it_is_asked_to(state: State) -> None:
    """A second run without `wait` fails at once."""
    with hold_lease(state, "first run"), pytest.raises(LeaseHeld), hold_lease(state, "second run", tell=pytest.fail):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """The lease of a killed process on this machine is taken over at once."""
    code = (
        "import sys, time; from pathlib import Path; from ferry.state import files, lease\n"
        "lease.acquire_lease(files.DirectoryState(Path(sys.argv[1])), 'child'); "
        "print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        state = DirectoryState(tmp_path / "state")
        with pytest.raises(LeaseHeld, match=f"child .process {child.pid}"):
            acquire_lease(state, "me")
        child.kill()  # not waited for: a zombie is dead too
        wait_for(lambda: lease.lease_holder(state) is None)
        with hold_lease(state, "me") as mine:
            assert mine.held
    finally:
        child.kill()
        child.wait()


def test_an_expired_lease_is_taken_over_and_a_live_one_is_not(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expired lease that its holder does not renew is taken over, and the earlier holder is known."""
    monkeypatch.setattr(lease, "WATCH_S", 0.2)
    monkeypatch.setattr(lease, "WAIT_S", 0.05)
    far = replace(HOLDER, expires_at=time.time() + 60)
    state.write(NAME, far.encode())
    with pytest.raises(LeaseHeld, match="nightly"):
        acquire_lease(state, "me")
    assert state.read(NAME) == far.encode()
    dead = replace(far, expires_at=time.time() - 1)
    state.write(NAME, dead.encode())
    told: list[str] = []
    with hold_lease(state, "me", tell=told.append) as mine:
        assert decode(state.read(NAME)).run == "me"
        assert mine.took_over == dead
    assert len(told) == 1
    assert "nightly (process 42 on host) may be dead" in told[0]


@pytest.mark.parametrize("off_s", [-600.0, 600.0], ids=["behind", "ahead"])
def test_a_clock_that_is_off_costs_nobody_the_lease(
    off_s: float, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder whose clock is ten minutes off keeps the lease that it renews."""
    monkeypatch.setattr(lease, "WATCH_S", 5.0)
    monkeypatch.setattr(lease, "WAIT_S", 0.05)
    far = replace(HOLDER, expires_at=time.time() + off_s)
    state.write(NAME, far.encode())
    renewed = threading.Timer(0.3, lambda: state.write(NAME, replace(far, expires_at=far.expires_at + 30).encode()))
    renewed.start()
    try:
        with pytest.raises(LeaseHeld, match="nightly"):
            acquire_lease(state, "me")
    finally:
        renewed.join()
    assert decode(state.read(NAME)).token == HOLDER.token


def race(state: State, contenders: int) -> list[lease.Lease | None]:
    results: list[lease.Lease | None] = [None] * contenders
    barrier = threading.Barrier(contenders)

    def contend(n: int) -> None:
        barrier.wait()
        try:
            results[n] = acquire_lease(state, f"run {n}")
        except LeaseHeld:
            return

    threads = [threading.Thread(target=contend, args=[n]) for n in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("before", ["nothing", "given back", "dead"])
def test_of_eight_at_once_one_wins(before: str, state: State) -> None:
    """Of eight threads one takes a missing, released or dead lease, and the file names it."""
    for _ in range(3 if isinstance(state, DirectoryState) else 1):
        if before == "given back":
            state.write(NAME, replace(HOLDER, expires_at=lease.RELEASED).encode())
        if before == "dead":
            state.write(NAME, replace(this_process("old", time.time() + 60), process_start="another").encode())
        winners = [(n, won) for n, won in enumerate(race(state, 8)) if won is not None]
        assert len(winners) == 1
        n, won = winners[0]
        assert decode(state.read(NAME)).run == f"run {n}"
        won.release()


def _contend(folder: str, go: Any, answers: Any, over: Any) -> None:
    state = DirectoryState(Path(folder))
    go.wait()
    try:
        acquire_lease(state, "child")
        answers.put(True)
        over.wait(120)  # keeps it: a process that ends gives it up
    except LeaseHeld:
        answers.put(False)


@pytest.mark.slow
def test_of_eight_processes_one_wins(tmp_path: Path) -> None:
    """Of eight processes one takes a released lease."""
    context = multiprocessing.get_context("forkserver")
    state = DirectoryState(tmp_path / "state")
    state.write(NAME, replace(HOLDER, expires_at=lease.RELEASED).encode())
    go, over, answers = context.Event(), context.Event(), context.Queue()
    arguments = (str(tmp_path / "state"), go, answers, over)
    children = [context.Process(target=_contend, args=arguments) for _ in range(8)]
    for child in children:
        child.start()
    go.set()
    won = [answers.get(timeout=120) for _ in children]
    over.set()
    for child in children:
        child.join()
    assert won.count(True) == 1


def test_a_lease_is_renewed(state: State, quick: None) -> None:
    """The expiry time in the file increases while the lease is held."""
    with hold_lease(state, "me") as mine:
        first = decode(state.read(NAME)).expires_at
        wait_for(lambda: decode(state.read(NAME)).expires_at > first)
        assert mine.held


@pytest.mark.parametrize("end", ["taken over", "deleted"])
def test_a_lost_lease_is_noticed_and_left_alone(end: str, state: State, quick: None) -> None:
    """A lease that another run took or deleted is lost: on_lost is called, and release changes nothing."""
    lost = threading.Event()
    mine = acquire_lease(state, "me", lost.set)
    other = replace(HOLDER, expires_at=time.time() + 60).encode()
    if end == "deleted":
        state.delete([NAME])
    else:
        state.write(NAME, other)
    assert lost.wait(120)
    assert not mine.held
    mine.release()
    if end == "taken over":
        assert state.read(NAME) == other


def test_a_lease_past_its_time_is_not_held_before_it_is_regained(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended holder regains an expired lease that no other run took, whatever its wall clock says."""
    with hold_lease(state, "me") as mine:
        assert mine.held
        before, at, now = state.read(NAME), lease.steady_s(), time.time()
        monkeypatch.setattr(lease, "steady_s", lambda: at + lease.LENGTH_S + 1)
        monkeypatch.setattr(time, "time", lambda: now - 3600)
        assert not mine.held
        assert mine.regain()
        assert mine.held
        assert state.read(NAME) != before
        monkeypatch.undo()


def test_a_suspended_holder_whose_lease_was_taken_writes_nothing_more(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that finds another run's token reports the loss once and does not write the file."""
    lost: list[int] = []
    with hold_lease(state, "me", lambda: lost.append(1)) as mine:
        other = replace(HOLDER, expires_at=time.time() + 60).encode()
        state.write(NAME, other)
        at = lease.steady_s()
        monkeypatch.setattr(lease, "steady_s", lambda: at + lease.LENGTH_S + 1)
        assert not mine.regain()
        monkeypatch.undo()
        assert not mine.held
        assert not mine.regain()
        with pytest.raises(Fatal, match="lost its lease"):
            lease.check_lease(state, mine.token)
    assert lost == [1]
    assert state.read(NAME) == other


def test_a_lease_that_is_held_is_not_regained(state: State) -> None:
    """Regaining a lease that has not expired does not write to the state."""
    with hold_lease(state, "me") as mine:
        before = state.read(NAME)
        assert mine.regain()
        assert state.read(NAME) == before


class Away(DirectoryState):
    """A directory whose swaps can be made to fail."""

    away = False

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        if self.away:
            raise Fatal("the state is away")
        return super().swap(name, old, new)


def test_a_lease_that_could_not_be_regained_is_renewed_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expired lease that could not be renewed is lost for good, and is not renewed later."""
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    state = Away(tmp_path / "state")
    lost: list[int] = []
    mine = acquire_lease(state, "me", lambda: lost.append(1))
    state.away = True
    at = lease.steady_s()
    monkeypatch.setattr(lease, "steady_s", lambda: at + lease.LENGTH_S + 1)
    assert not mine.regain()
    monkeypatch.setattr(lease, "steady_s", lambda: at)
    state.away = False
    before = state.read(NAME)
    mine._thread.join(60)
    assert not mine.regain()
    assert state.read(NAME) == before
    assert lost == [1]
    mine.release()
    assert state.read(NAME) == before


def test_what_others_build_on_is_written_by_the_holder_alone(state: State) -> None:
    """check_lease passes for the holder's token, and raises Fatal for another token or without a lease."""
    with hold_lease(state, "me") as mine:
        lease.check_lease(state, mine.token)
        with pytest.raises(Fatal):
            lease.check_lease(state, "another")
    with pytest.raises(Fatal):
        lease.check_lease(state, "another")


class Unreliable(DirectoryState):
    """A directory whose first swap succeeds, but whose response is lost."""

    swaps = 0

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        self.swaps += 1
        done = super().swap(name, old, new)
        if self.swaps == 1:
            raise Fatal("the answer was lost")
        return done


def test_a_renewal_whose_answer_was_lost_is_still_ours(tmp_path: Path, quick: None) -> None:
    """A renewal whose response was lost does not lose the lease."""
    state = Unreliable(tmp_path / "state")
    lost = threading.Event()
    with hold_lease(state, "me", lost.set) as mine:
        wait_for(lambda: state.swaps >= 4 or lost.is_set())
        assert mine.held


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"{}",
        *(json.dumps({**asdict(HOLDER), **odd}).encode() for odd in (
            {"unheard": 1}, {"host": 1}, {"boot_id": None}, {"run": 1}, {"token": 1}, {"expires_at": "soon"},
            {"pid": "me"},
        )),
    ],
)  # fmt: skip
def test_a_damaged_lease_is_said_in_a_sentence(raw: bytes, tmp_path: Path) -> None:
    """A damaged lease file raises an error of Ferry."""
    state = DirectoryState(tmp_path / "state")
    state.write(NAME, raw)
    with pytest.raises(FerryError):
        acquire_lease(state, "me")


@pytest.mark.parametrize(
    ("boot_id", "process_start", "dead"),
    [("here", "mine", False), ("here", "another", True), ("elsewhere", "another", False), ("", "another", False)],
)
def test_who_is_certainly_gone(boot_id: str, process_start: str, dead: bool) -> None:
    """A process is dead if its PID here has another start time; nothing is known of other machines."""
    me = this_process("me", 0.0)
    boot_id = me.boot_id if boot_id == "here" else boot_id
    assert is_dead(boot_id, me.pid, me.process_start if process_start == "mine" else process_start) is dead


class Counted(DirectoryState):
    """A directory that counts its reads."""

    reads = 0

    def read(self, name: str) -> bytes:
        self.reads += 1
        return super().read(name)


def test_who_waits_does_not_ask_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting run reads the lease once per WAIT_S."""
    monkeypatch.setattr(lease, "WAIT_S", 0.1)
    state = Counted(tmp_path / "state")
    first = acquire_lease(state, "first")
    releasing = threading.Timer(1.0, first.release)
    releasing.start()
    started = time.monotonic()
    acquire_lease(state, "second", wait=True).release()
    releasing.join()
    assert state.reads <= (time.monotonic() - started) / 0.1 + 4


def test_a_holder_survives_its_json() -> None:
    """A holder is decoded as it was encoded, and two acquisitions of a process have different tokens."""
    assert decode(HOLDER.encode()) == HOLDER
    assert this_process("a", 1.0) != this_process("a", 1.0)


def test_a_run_waits_for_its_own_earlier_process(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed flow run waits for its ending old process; any other run is refused."""
    monkeypatch.setattr(lease, "WAIT_S", 0.01)
    first = acquire_lease(state, "nightly", flow_run="one")
    with pytest.raises(LeaseHeld):
        acquire_lease(state, "nightly", flow_run="two")
    with pytest.raises(LeaseHeld):
        acquire_lease(state, "nightly")
    timer = threading.Timer(0.3, first.release)
    timer.start()
    told: list[str] = []
    second = acquire_lease(state, "nightly", flow_run="one", tell=told.append)
    timer.join()
    assert len(told) == 1
    assert "waiting for another run of this job to end: nightly" in told[0]
    assert second.held
    second.release()


class Clock:
    """A steady clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(lease, "steady_s", lambda: self.now)


def test_a_lease_seen_from_another_machine(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lasts 120 s from the last change of the file, and a write needs a look that is at most 15 s old."""
    held = acquire_lease(state, "run")
    clock = Clock(monkeypatch)
    seen = lease.Seen(state, held.token, fresh_s=15.0)
    assert not seen.held  # before the first look
    assert seen.look()
    clock.now += 14
    assert seen.held
    clock.now += 2
    assert not seen.held
    assert seen.regain()  # it looks
    clock.now += 110  # the holder has not renewed it since
    assert not seen.look()
    assert not seen.may_be_held
    held._renew()
    assert seen.look()
    held.release()
    assert not seen.look()
    assert seen.lost


def test_a_lease_that_another_run_took_is_lost_at_the_next_look(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clocks say: the file has another token."""
    first = acquire_lease(state, "first")
    clock = Clock(monkeypatch)
    seen = lease.Seen(state, first.token, fresh_s=15.0)
    assert seen.look()
    first.release()
    second = acquire_lease(state, "second")
    clock.now += 1
    assert not seen.look()
    assert seen.lost
    assert not seen.regain()
    second.release()


def test_a_lease_is_lost_when_the_attempt_is_over(tmp_path: Path) -> None:
    """The second condition of each look."""
    state, over = DirectoryState(tmp_path), False
    held = acquire_lease(state, "run")
    seen = lease.Seen(state, held.token, 15.0, lambda: not over)
    assert seen.look()
    over = True
    assert not seen.look()
    held.release()


def test_a_seen_lease_waits_for_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the state does not answer, ``regain`` tries again until the lease may be over."""
    monkeypatch.setattr(lease, "WAIT_S", 0.01)
    state = DirectoryState(tmp_path)
    held = acquire_lease(state, "run")
    clock, away = Clock(monkeypatch), 5
    seen = lease.Seen(state, held.token, 15.0)
    seen.look()

    def read(name: str) -> bytes:
        nonlocal away
        away -= 1
        clock.now += 10
        if away > 0:
            raise Fatal("away")
        return DirectoryState.read(state, name)

    monkeypatch.setattr(state, "read", read)
    clock.now += 20
    assert seen.regain()
    away = 100
    clock.now += 20
    assert not seen.regain()
    held.release()
