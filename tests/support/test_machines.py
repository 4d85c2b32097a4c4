"""What tests of several machines rely on."""

from __future__ import annotations

import http.server
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.project import ROOT, wait_for
from tests.support.machines import Machine, Network, needs_clocks, needs_machines

ASK = """
import os, socket, sys, time, urllib.request
while True:
    try:
        code = urllib.request.urlopen(sys.argv[1], timeout=1).status
    except OSError:
        code = 0
    print(code, socket.gethostname(), os.getpid(), os.getppid(), time.time(), time.monotonic(), flush=True)
    time.sleep(0.05)
"""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    needs_machines()
    with Network(tmp_path) as network:
        yield network


@pytest.fixture
def site() -> Iterator[str]:
    """A server on loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def ask(machine: Machine, url: str, log: Path) -> None:
    machine.start([sys.executable, "-c", ASK, url], ROOT, {"PATH": os.environ["PATH"]}, log)


def codes(log: Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines()]


@pytest.mark.slow  # each state of the network takes a second to show
def test_machines_reach_a_server_by_its_relay_alone(network: Network, site: str, tmp_path: Path) -> None:
    relay = network.relay(site)
    first, second = network.add_machine(), network.add_machine()
    logs = [tmp_path / "first.log", tmp_path / "second.log", tmp_path / "loopback.log"]
    ask(first, relay.url, logs[0])
    ask(second, relay.url, logs[1])
    ask(second, site, logs[2])
    wait_for("answers", lambda: all(log.exists() and log.read_text() for log in logs))
    wait_for("the relay's answers", lambda: all("200" in codes(log) for log in logs[:2]))
    assert set(codes(logs[2])) == {"0"}  # this machine's loopback is not theirs
    said = [log.read_text().split()[1:4] for log in logs[:2]]
    assert [host for host, *_ in said] == ["machine-1", "machine-2"]
    assert first.processes("urllib")
    assert not {*first.processes("urllib")} & {*second.processes("urllib")}

    first.cut_off()
    wait_for("no answers", lambda: codes(logs[0])[-1] == "0")
    assert codes(logs[1])[-1] == "200"
    first.reconnect()
    wait_for("answers again", lambda: codes(logs[0])[-1] == "200")
    relay.cut()
    wait_for("no answers at all", lambda: codes(logs[0])[-1] == codes(logs[1])[-1] == "0")
    relay.mend()
    wait_for("answers from the relay again", lambda: codes(logs[0])[-1] == codes(logs[1])[-1] == "200")

    pids = first.processes("urllib")
    first.power_off()
    wait_for("the end of its processes", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert second.kill("urllib") != []


@pytest.mark.slow
def test_a_machine_s_clock_may_be_ahead(network: Network, site: str, tmp_path: Path) -> None:
    needs_clocks()
    ask(network.add_machine(clock_s=90.0), network.relay(site).url, tmp_path / "log")
    wait_for("a line", lambda: (tmp_path / "log").exists() and "200" in codes(tmp_path / "log"))
    *_, wall, steady = (tmp_path / "log").read_text().splitlines()[-1].split()
    assert 85 < float(wall) - time.time() < 95
    assert abs(float(steady) - time.monotonic()) < 10
