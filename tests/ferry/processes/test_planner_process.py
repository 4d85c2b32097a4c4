"""The planner process: one process for many requests, a fork for each, and clear errors when one is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.origin import Origin
from ferry.core.errors import Fatal, UserError
from ferry.processes.planner_process import PlannerProcess, PlanRequest
from ferry.state.plan_file import Planned
from ferry.storage.access import Access
from tests.support.helpers import make_job


@pytest.fixture
def child() -> Iterator[PlannerProcess]:
    with PlannerProcess() as process:
        yield process


def request(folder: Path, manifest: str = "list.csv", work: str = "plan", **ask: object) -> PlanRequest:
    (folder / "list.csv").write_text("sku,url\n1,https://img.example/1.jpg\n2,https://img.example/2.jpg\n")
    manifest = manifest if "://" in manifest else str(folder / manifest)
    job = make_job(manifest=manifest, destination=f"file://{folder}/out/")
    asked = {"run_no": 1, "dry": True, **ask} if work == "plan" else {"run_no": 1}
    return PlanRequest(job, str(folder / "state"), str(folder / "cache"), Access(), Access(), work, asked)


def processes_below(pid: int) -> set[int]:
    """Returns the IDs of a process's children, from /proc (proc(5))."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found.add(int(entry.name))
    return found


@pytest.mark.slow
def test_one_process_answers_many_requests(child: PlannerProcess, tmp_path: Path) -> None:
    """An error in one request does not end the process, and each fork ends with its response."""
    assert Planned.decode(child.ask(request(tmp_path))).rows == 2
    ours = processes_below(os.getpid())
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        child.ask(request(tmp_path, "none.csv"))
    assert Planned.decode(child.ask(request(tmp_path))).rows == 2
    assert processes_below(os.getpid()) == ours
    assert child._process is not None
    assert not processes_below(child._process.pid)


def test_a_bug_is_not_the_users_fault(child: PlannerProcess, tmp_path: Path) -> None:
    """An unexpected exception is Fatal and names its type, and the process still answers."""
    with pytest.raises(Fatal, match=r"TypeError.*please report it"):
        child.ask(request(tmp_path, mode_of_tomorrow="x"))
    assert Planned.decode(child.ask(request(tmp_path))).rows == 2


@pytest.mark.slow
def test_work_that_is_killed(child: PlannerProcess, origin: Origin, tmp_path: Path) -> None:
    """A killed fork is Fatal with the name of the signal; a killed process is Fatal and is replaced."""
    origin.latency_s = 60.0  # planning waits for the list
    manifest = origin.add("/list.csv", b"url\n")

    def kill(which: str) -> None:
        (child_pid,) = processes_below(os.getpid()) - before
        deadline = time.monotonic() + 20
        while not (forks := processes_below(child_pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child_pid if which == "process" else forks.pop(), signal.SIGKILL)

    child.close()
    before = processes_below(os.getpid())
    for which, said in (("fork", "ended by SIGKILL"), ("process", "ended unexpectedly")):
        child.start()
        killer = threading.Thread(target=kill, args=(which,))
        killer.start()
        with pytest.raises(Fatal, match=said):
            child.ask(request(tmp_path, manifest))
        killer.join()
    assert Planned.decode(child.ask(request(tmp_path))).rows == 2


def test_closing_ends_it(child: PlannerProcess) -> None:
    """close() ends the process, also when called twice and before any request."""
    before = processes_below(os.getpid())
    child.close()
    child.close()
    assert len(processes_below(os.getpid())) == len(before) - 1
