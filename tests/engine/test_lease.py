"""One run at a time: who may take a lease, and that two never hold it."""

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

from tasks.engine import lease
from tasks.engine.errors import Fatal, FerryError, LeaseHeld
from tasks.engine.lease import NAME, Holder, acquire, decode, held, is_over, this_process
from tasks.engine.state import DirectoryState, State, open_state
from tests.engine.helpers import access

HOLDER = Holder("host", 42, "boot/ns", "100", "nightly", "token", 1000.0)


@pytest.fixture(params=["directory", "bucket"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    if request.param == "directory":
        return DirectoryState(tmp_path / "state")
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    return open_state(f"s3://{bucket}/state", access(s3), tmp_path / "cache")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Renewed every 50 ms."""
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    return iter(())


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("now", "place", "started", "over"),
    [
        (1000.0, "boot/ns", "100", True),
        (1000.0, "elsewhere", None, True),
        (1000.1, "", "", True),
        (999.9, "elsewhere", None, False),
        (999.9, "elsewhere", "7", False),
        (999.9, "", None, False),
        (999.9, "boot/ns", None, True),
        (999.9, "boot/ns", "101", True),
        (999.9, "boot/ns", "100", False),
    ],
)
def test_when_a_lease_is_over(now: float, place: str, started: str | None, over: bool) -> None:
    """The truth table of is_over."""
    assert is_over(HOLDER, now, place, started) is over


def test_a_place_that_is_unknown_proves_nothing() -> None:
    """Without /proc neither side knows its place: only time ends such a lease."""
    assert not is_over(replace(HOLDER, place=""), 999.0, "", None)


def test_the_second_run_is_refused_and_told_by_whom(state: State) -> None:
    """LeaseHeld names run, process and host; after the release the lease is free."""
    with held(state, "first run"):
        with pytest.raises(LeaseHeld, match=r"first run \(process \d+ on "):
            acquire(state, "second run")
        found = lease.holder(state)
        assert found is not None
        assert found.run == "first run"
    assert lease.holder(state) is None
    with held(state, "third run"):
        pass
    with pytest.raises(FileNotFoundError):
        state.read(NAME)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """The lease of a process that was killed on this machine is taken over at once, its 120 s notwithstanding."""
    code = (
        "import sys, time; from pathlib import Path; from tasks.engine import lease, state\n"
        "lease.acquire(state.DirectoryState(Path(sys.argv[1])), 'child'); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        state = DirectoryState(tmp_path / "state")
        with pytest.raises(LeaseHeld, match=f"child .process {child.pid}"):
            acquire(state, "me")
        child.kill()  # not waited for: a zombie is dead too
        wait_for(lambda: lease.holder(state) is None)
        with held(state, "me") as mine:
            assert mine.held
    finally:
        child.kill()
        child.wait()


def test_an_expired_lease_is_taken_over_and_a_live_one_is_not(state: State) -> None:
    """Of a process on another machine only the time can tell."""
    far = replace(HOLDER, expires_at=time.time() + 60)
    state.write(NAME, far.encode())
    with pytest.raises(LeaseHeld, match="nightly"):
        acquire(state, "me")
    assert state.read(NAME) == far.encode()
    state.write(NAME, replace(far, expires_at=time.time() - 1).encode())
    with held(state, "me"):
        assert decode(state.read(NAME)).run == "me"


def race(state: State, contenders: int) -> list[lease.Lease | None]:
    results: list[lease.Lease | None] = [None] * contenders
    barrier = threading.Barrier(contenders)

    def contend(n: int) -> None:
        barrier.wait()
        try:
            results[n] = acquire(state, f"run {n}")
        except LeaseHeld:
            return

    threads = [threading.Thread(target=contend, args=[n]) for n in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("before", ["nothing", "expired"])
def test_of_eight_at_once_one_wins(before: str, state: State) -> None:
    """From nothing and from an expired lease, exactly one gets it, and the file names that one."""
    for _ in range(3 if isinstance(state, DirectoryState) else 1):
        if before == "expired":
            state.write(NAME, replace(HOLDER, expires_at=1.0).encode())
        winners = [(n, won) for n, won in enumerate(race(state, 8)) if won is not None]
        assert len(winners) == 1
        n, won = winners[0]
        assert decode(state.read(NAME)).run == f"run {n}"
        won.release()


def _contend(folder: str, go: Any, answers: Any, over: Any) -> None:
    state = DirectoryState(Path(folder))
    go.wait()
    try:
        acquire(state, "child")
        answers.put(True)
        over.wait(30)  # keeps it: a process that ends gives it up
    except LeaseHeld:
        answers.put(False)


def test_of_eight_processes_one_wins(tmp_path: Path) -> None:
    """The same with processes, over an expired lease."""
    context = multiprocessing.get_context("forkserver")
    state = DirectoryState(tmp_path / "state")
    state.write(NAME, replace(HOLDER, expires_at=1.0).encode())
    go, over, answers = context.Event(), context.Event(), context.Queue()
    arguments = (str(tmp_path / "state"), go, answers, over)
    children = [context.Process(target=_contend, args=arguments) for _ in range(8)]
    for child in children:
        child.start()
    go.set()
    won = [answers.get(timeout=30) for _ in children]
    over.set()
    for child in children:
        child.join()
    assert won.count(True) == 1


def test_a_lease_is_renewed(state: State, quick: None) -> None:
    """The time in the file moves on while the lease is held, and it stays held."""
    with held(state, "me") as mine:
        first = decode(state.read(NAME)).expires_at
        wait_for(lambda: decode(state.read(NAME)).expires_at > first)
        assert mine.held


@pytest.mark.parametrize("end", ["taken over", "deleted"])
def test_a_lost_lease_is_noticed_and_left_alone(end: str, state: State, quick: None) -> None:
    """Another holder, or no file: on_lost is called, held is False, and the release touches nothing of the other's."""
    lost = threading.Event()
    mine = acquire(state, "me", lost.set)
    other = replace(HOLDER, expires_at=time.time() + 60).encode()
    if end == "deleted":
        state.delete([NAME])
    else:
        state.write(NAME, other)
    assert lost.wait(10)
    assert not mine.held
    mine.release()
    if end == "taken over":
        assert state.read(NAME) == other


def test_a_lease_past_its_time_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a renewal within 120 s, by either clock (a laptop that slept stops the monotonic one), it is not held."""
    state = DirectoryState(tmp_path / "state")
    with held(state, "me") as mine:
        assert mine.held
        at = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: at + lease.LENGTH_S + 1)
        assert not mine.held
        monkeypatch.undo()
        assert mine.held
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + lease.LENGTH_S + 1)
        assert not mine.held
        monkeypatch.undo()


class Unreliable(DirectoryState):
    """A directory whose swap works, and whose answer to the first one is lost."""

    swaps = 0

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        self.swaps += 1
        done = super().swap(name, old, new)
        if self.swaps == 1:
            raise Fatal("the answer was lost")
        return done


def test_a_renewal_whose_answer_was_lost_is_still_ours(tmp_path: Path, quick: None) -> None:
    """The token in the file is the holder's own: that is no other run, and the lease stays held."""
    state = Unreliable(tmp_path / "state")
    lost = threading.Event()
    with held(state, "me", lost.set) as mine:
        wait_for(lambda: state.swaps >= 4 or lost.is_set())
        assert mine.held


@pytest.mark.parametrize("raw", [b"", b"{", b"{}", json.dumps({**asdict(HOLDER), "unheard": 1}).encode()])
def test_a_damaged_lease_is_said_in_a_sentence(raw: bytes, tmp_path: Path) -> None:
    """A lease file that cannot be read is an error of Ferry's own kind, not a traceback."""
    state = DirectoryState(tmp_path / "state")
    state.write(NAME, raw)
    with pytest.raises(FerryError):
        acquire(state, "me")


def test_a_holder_survives_its_json() -> None:
    """What is written is what is read; two acquisitions of one process differ."""
    assert decode(HOLDER.encode()) == HOLDER
    assert this_process("a", 1.0) != this_process("a", 1.0)
