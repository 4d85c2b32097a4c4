"""A service of systemd's, without systemd: the command and the environment of its unit file, started here.

What a unit says of a machine (paths, ports) is replaced by what is here; nothing else differs, so that what is tried
is what is installed. Users, limits and the sandbox are systemd's own and are not tried so.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

# What systemd gives a system service, and nothing of the shell's that started this.
CLEAN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def settings(text: str) -> dict[str, list[str]]:
    """The keys of a unit's [Service] section and their values, in order; a key may stand there several times."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line.strip() and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


class Unit:
    """A service of a unit file. ``here`` says what stands in place of what in its text, longest first."""

    def __init__(self, path: Path, here: Mapping[str, str], log: Path) -> None:
        text = path.read_text()
        if here:
            named = "|".join(map(re.escape, sorted(here, key=len, reverse=True)))
            text = re.sub(named, lambda found: here[found[0]], text)
        self.service = settings(text)
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        words = shlex.split(self.service["ExecStart"][-1])
        return [re.sub(r"\$\{(\w+)\}", lambda found: self.environment[found[1]], word) for word in words]

    @property
    def stated(self) -> dict[str, str]:
        """The variables that the unit itself names."""
        lines = [part for value in self.service.get("Environment", []) for part in shlex.split(value)]
        return dict(line.split("=", 1) for line in lines)

    @property
    def environment(self) -> dict[str, str]:
        files = [Path(file).read_text().splitlines() for file in self.service.get("EnvironmentFile", [])]
        lines = [line for file in files for line in file if line and not line.startswith("#")]
        return {**CLEAN, **self.stated, **dict(line.split("=", 1) for line in lines)}

    def start(self) -> None:
        """Starts it; it is killed with this process. SIGINT has its default effect, whatever a shell has set."""
        bound = ["env", "--default-signal=INT", "setpriv", "--pdeathsig=KILL", "--"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*bound, *self.command], cwd=self.service["WorkingDirectory"][-1], env=self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """As `systemctl stop`: ExecStop, then SIGTERM to the first process, each for TimeoutStopSec at most."""
        if self.process is None:
            return
        within_s = float(self.service["TimeoutStopSec"][-1])
        with contextlib.suppress(subprocess.TimeoutExpired):
            for line in self.service.get("ExecStop", []):
                command = shlex.split(line.replace("$MAINPID", str(self.process.pid)))
                subprocess.run(command, env=self.environment, timeout=within_s, check=True)
        below = descendants(self.process.pid)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        self._kill([] if "process" in self.service.get("KillMode", []) else below)

    def kill(self) -> None:
        """SIGKILL to all of it at once."""
        if self.process is not None:
            self._kill(descendants(self.process.pid))

    def _kill(self, below: list[int]) -> None:
        assert self.process is not None
        process, self.process = self.process, None
        process.kill()
        process.wait()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes below ``pid``, those that it started in sessions of their own included."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(stat.parent.name))
    found = list(below.get(pid, []))
    for child in found:
        found += below.get(child, [])
    return found
