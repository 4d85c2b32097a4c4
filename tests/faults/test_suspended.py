"""A holder of the lease that is suspended beyond its time, and then continued: alone it goes on, else it stops."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ferry.core.errors import LeaseHeld
from ferry.state import lease
from ferry.state.files import DirectoryState
from tests.faults.amount import LONG

ROOT = Path(__file__).parents[2]
# Seconds: how long a lease lasts, how often it is renewed, how long it is watched, how long the holder is suspended.
LENGTH_S, RENEW_S, WATCH_S, SUSPENDED_S = (120.0, 30.0, 45.0, 300.0) if LONG else (1.5, 0.3, 0.6, 3.0)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HOLDER = """
import sys, time
from pathlib import Path
from ferry.state import files, lease
lease.LENGTH_S, lease.RENEW_S, lease.WATCH_S = map(float, sys.argv[2:5])
kept = files.DirectoryState(Path(sys.argv[1]))
held = lease.acquire_lease(kept, "holder", flow_run="a-flow-run")
number = 0
while held.regain():
    number += 1
    kept.write("outcomes/of-the-holder", str(number).encode())
    print(number, flush=True)
    time.sleep(0.05)
print("lost", flush=True)
held.release()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease and writes 20 times a second, as long as it may."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "state"), str(LENGTH_S), str(RENEW_S), str(WATCH_S)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.wait()


def test_nobody_took_it(holder: subprocess.Popen[str], tmp_path: Path, tried: Callable[..., None]) -> None:
    """Its time is long over when it is continued: it looks, finds its own token, and goes on."""
    state = DirectoryState(tmp_path / "state")
    holder.send_signal(signal.SIGSTOP)
    time.sleep(SUSPENDED_S)
    written = int(state.read("outcomes/of-the-holder"))
    assert time.time() > lease.decode(state.read(lease.NAME)).expires_at
    holder.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 30
    while int(state.read("outcomes/of-the-holder")) < written + 5:
        assert time.monotonic() < deadline, "it did not go on"
        assert holder.poll() is None
        time.sleep(0.05)
    assert lease.decode(state.read(lease.NAME)).run == "holder"
    tried(f"holder of the lease suspended for {SUSPENDED_S:.0f} s, and continued")


def test_somebody_took_it(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Callable[..., None]
) -> None:
    """While it lives nobody gets it. Suspended, it is watched and then taken over, and who had it is known; continued,
    it writes nothing more."""
    for name, value in (("LENGTH_S", LENGTH_S), ("WATCH_S", WATCH_S), ("WAIT_S", 0.1)):
        monkeypatch.setattr(lease, name, value)
    state = DirectoryState(tmp_path / "state")
    with pytest.raises(LeaseHeld, match="holder"):
        lease.acquire_lease(state, "second")
    holder.send_signal(signal.SIGSTOP)
    time.sleep(SUSPENDED_S)
    with lease.hold_lease(state, "second") as second:
        assert second.took_over is not None
        assert second.took_over.flow_run == "a-flow-run"
        before = state.read("outcomes/of-the-holder")
        holder.send_signal(signal.SIGCONT)
        out, _ = holder.communicate(timeout=60)
        assert out.splitlines()[-1] == "lost"
        # one write may have been under way when it was stopped: it had asked before
        assert int(state.read("outcomes/of-the-holder")) <= int(before) + 1
        assert lease.decode(state.read(lease.NAME)).run == "second"
    tried(f"lease taken from a holder that was suspended for {SUSPENDED_S:.0f} s")
