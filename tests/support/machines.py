"""Several machines on this one: network, processes, host name and clock of their own, and one network between them.

A machine is a set of Linux namespaces (namespaces(7)): what runs there sees neither this machine's processes nor its
loopback. It reaches the servers of the tests through a relay, under one address that is good everywhere. Files are
those of this machine; HOME and TMPDIR are each machine's own. Only root may make them.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import pytest

from demo.ports import free_ports

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"  # of Debian's package faketime
SLEEP = Path(__file__).parent / "other_clock"
WITHIN_S = 20.0
T = TypeVar("T")
_UNDER_TESTS = ["setpriv", "--pdeathsig", "KILL"]  # the process ends with the thread that starts it
_NETWORKS = itertools.count()


def needs_machines() -> None:
    """Skip where namespaces cannot be made: they take root, and a kernel and container that allow them."""
    missing = [name for name in ("unshare", "nsenter", "setpriv", "ip") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"machines of namespaces need root and {', '.join(missing) or 'nothing else'}")
    tried = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this machine does not allow namespaces: {tried.stderr.strip()}")


def needs_clocks() -> None:
    """Skip without libfaketime, which gives a process another clock."""
    if not Path(FAKETIME).exists():
        pytest.skip("faketime is not installed. As root: apt-get install -y faketime")


class Network:
    """A bridge that this machine and its :class:`Machine` objects share; at its end all that is ended and removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        number = next(_NETWORKS)
        # Two test processes must not take one subnet: 10.128.0.0/9 has 32,768 of 256 addresses.
        self._subnet = f"10.{128 + secrets.randbelow(128)}.{(os.getpid() + number) % 256}"
        self._bridge = f"fy{os.getpid() % 100_000:05d}{number % 100:02d}"
        self.address = f"{self._subnet}.1"
        self.machines: list[Machine] = []
        self._relays: list[Relay] = []

    def __enter__(self) -> Self:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self.machines:
            machine.power_off()
        for relay in self._relays:
            relay.cut()
        _ip("link", "del", self._bridge)

    def add_machine(self, clock_s: float = 0.0) -> Machine:
        """Start a machine whose clock is ``clock_s`` ahead of this one's."""
        number = len(self.machines) + 2
        machine = Machine(f"machine-{number - 1}", f"{self._subnet}.{number}", self._folder, clock_s)
        self.machines.append(machine)
        machine.connect(self._bridge, f"{self._bridge}v{number}")
        return machine

    def relay(self, url: str) -> Relay:
        """Have a server of this machine's loopback answer in the network, too."""
        relay = Relay(self.address, url)
        self._relays.append(relay)
        relay.mend()
        return relay


class Machine:
    """One machine; ``home`` is its HOME."""

    def __init__(self, name: str, address: str, folder: Path, clock_s: float) -> None:
        self.name, self.address = name, address
        self.home = folder / name
        for path in (self.home, self.home / "tmp"):
            path.mkdir()
        self._clock_s = clock_s
        self._link = ""
        self._unshare = subprocess.Popen(
            [*_UNDER_TESTS, "unshare", "--net", "--pid", "--uts", "--mount", "--fork", "--mount-proc",
             "--kill-child=SIGKILL", "sh", "-c", f"hostname {name}; ip link set lo up; exec sleep infinity"],
            start_new_session=True,
        )  # fmt: skip
        self._init = _wait_for(f"the first process of {name}", self._find_init)

    def _find_init(self) -> int | None:
        pid = self._unshare.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != "sleep":
            return None
        return int(children[0])

    def connect(self, bridge: str, link: str) -> None:
        self._link = link
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(self._init))
        _ip("link", "set", link, "master", bridge, "up")
        self.run(["ip", "addr", "add", f"{self.address}/24", "dev", "eth0"])
        self.run(["ip", "link", "set", "eth0", "up"])

    def _enter(self, arguments: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--net", "--pid", "--uts", "--mount", "--", *arguments]

    def run(self, arguments: Sequence[str]) -> None:
        subprocess.run(self._enter(arguments), check=True, capture_output=True, timeout=WITHIN_S)

    def start(self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path) -> None:
        """Start a command there; it ends with the machine. Its output is added to ``log``."""
        clock: dict[str, str] = {}
        if self._clock_s:
            clock = {
                "LD_PRELOAD": FAKETIME,
                "FAKETIME": f"{self._clock_s:+.0f}s",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # only what tells the time of day
                "PYTHONPATH": os.pathsep.join([str(SLEEP), environment.get("PYTHONPATH", "")]),
            }
        here = {"HOME": str(self.home), "TMPDIR": str(self.home / "tmp")}
        with log.open("ab") as output:
            subprocess.Popen(
                self._enter(arguments), cwd=cwd, env={**environment, **here, **clock}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def processes(self, *words: str) -> list[int]:
        """Returns the PIDs, as this machine counts, of what runs there with all these words in its command line."""
        found = []
        inside = Path(f"/proc/{self._init}/ns/pid").readlink()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = path.joinpath("cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                if path.joinpath("ns/pid").readlink() == inside and all(word in line for word in words):
                    found.append(int(path.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return sorted(found)

    def kill(self, *words: str, by: signal.Signals = signal.SIGKILL) -> list[int]:
        """Send a signal to the processes of :meth:`processes`, and return them."""
        found = [pid for pid in self.processes(*words) if pid != self._init]
        for pid in found:
            os.kill(pid, by)
        return found

    def cut_off(self) -> None:
        """Take the machine off the network: nothing comes in or out, and no connection is told."""
        _ip("link", "set", self._link, "down")

    def reconnect(self) -> None:
        _ip("link", "set", self._link, "up")

    def power_off(self) -> None:
        """End everything on the machine at once."""
        if self._unshare.poll() is None:
            self._unshare.kill()
        self._unshare.wait()


class Relay:
    """A process that passes connections of the network on to a server of loopback; ``url`` is the address there."""

    def __init__(self, address: str, url: str) -> None:
        self._target = urlsplit(url)
        self._address, self._port = address, free_ports(1)[0]
        self.url = self._target._replace(netloc=f"{address}:{self._port}").geturl()
        self._process: subprocess.Popen[bytes] | None = None

    def cut(self) -> None:
        """From now on connections are refused, and the open ones are reset."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def mend(self) -> None:
        assert self._process is None
        target = f"{self._target.hostname}:{self._target.port}"
        self._process = subprocess.Popen(
            [*_UNDER_TESTS, sys.executable, "-m", "tests.support.relay", f"{self._address}:{self._port}", target],
            start_new_session=True,
        )  # fmt: skip
        _wait_for("the relay", lambda: _answers(self._address, self._port) or None)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 1).close()
    except OSError:
        return False
    return True


def _wait_for(what: str, ask: Callable[[], T | None]) -> T:
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        if (found := ask()) is not None:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {WITHIN_S:.0f} s")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=WITHIN_S)
