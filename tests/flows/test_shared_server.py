"""The local Prefect server that outlives the command: one for each home, found again, and ended when it is unused."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ferry.core import UserError
from flows.server import local, shared
from flows.server.api_address import VERSION
from flows.server.local import LocalServer, Running, try_lock
from flows.server.shared import SharedServer, is_running
from tests.flows.project import ROOT, processes_with, wait_for

LIGHT = "tests.flows.light_server"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose servers have a small application in Prefect's place. What runs there at the end is killed."""
    monkeypatch.setattr(local, "SERVER", LIGHT)
    yield tmp_path / "home"
    for line in processes_with(str(tmp_path), servers=True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.partition(":")[0]), signal.SIGKILL)


COMMAND = """
import sys, time
from pathlib import Path
from flows.server import local
from flows.server.shared import SharedServer
local.SERVER = sys.argv[3]
with SharedServer(Path(sys.argv[1]), idle_s=float(sys.argv[2])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def command(home: Path, idle_s: float = 600) -> subprocess.Popen[str]:
    """A command that uses the server until its input ends, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(home), str(idle_s), LIGHT],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), local.WITHOUT_PROXY.open(url, timeout=10) as answer:
        return bool(answer.status == 200)
    return False


def servers(home: Path) -> list[str]:
    return [line for line in processes_with(str(home), servers=True) if LIGHT in line and "SharedServer" not in line]


def test_commands_that_start_at_once_use_one_server(home: Path) -> None:
    """Six commands start at the same moment: one server, at one address, which stays when they have ended."""
    commands = [command(home) for _ in range(6)]
    urls = {url_of(process) for process in commands}
    assert len(urls) == 1
    assert len(servers(home)) == 1
    for process in commands:
        process.communicate("", timeout=20)
    (url,) = urls
    assert answers(url)
    with SharedServer(home) as found:
        assert found.url == url
    assert len(servers(home)) == 1


def test_it_ends_when_it_is_unused_and_not_before(home: Path) -> None:
    """A command without requests keeps it; half a second after the command it ends; the next one has the same port."""
    using = command(home, idle_s=0.5)
    url = url_of(using)
    time.sleep(2)
    assert is_running(home)
    using.communicate("", timeout=20)
    wait_for("the server to end", lambda: not is_running(home), 20)
    assert not answers(url)
    with SharedServer(home) as again:
        assert again.url == url


def test_a_request_keeps_it(home: Path) -> None:
    """With requests it lives longer than its idle time; questions for its health count as none."""
    started = command(home, idle_s=2)
    url = url_of(started)
    started.communicate("", timeout=20)
    pid = Running.read(home)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        assert answers(url)
        time.sleep(0.2)
    assert Running.read(home) == pid
    until = time.monotonic() + 20
    while answers(f"{url}/api/health"):
        assert time.monotonic() < until, "questions for its health keep it"
        time.sleep(0.2)


def test_a_command_waits_for_a_server_that_is_ending(home: Path) -> None:
    """While a server that found itself unused ends, no command takes it for one that stays."""
    home.mkdir()
    ending = try_lock(home / "in-use.lock", fcntl.LOCK_EX)
    assert ending is not None
    waiting = command(home)
    time.sleep(1)
    assert waiting.poll() is None
    assert not servers(home)
    os.close(ending)
    assert answers(url_of(waiting))
    waiting.communicate("", timeout=20)


def test_a_killed_server_is_started_again(home: Path) -> None:
    """Within a command, at the same address."""
    with SharedServer(home) as server:
        before = Running.read(home)
        assert before is not None
        os.kill(before.pid, signal.SIGKILL)
        wait_for("another server", lambda: (now := Running.read(home)) is not None and now.pid != before.pid, 20)
        wait_for("its answer", lambda: answers(server.url), 20)


def test_a_killed_command_leaves_nothing_locked(home: Path) -> None:
    """A command that is killed while its server starts: the next one finds the server."""
    killed = command(home)
    wait_for("a server", lambda: Running.read(home) is not None, 20)
    killed.kill()
    killed.wait()
    before = Running.read(home)
    with SharedServer(home):
        now = Running.read(home)
    assert before is not None
    assert now is not None
    assert now.pid == before.pid
    assert len(servers(home)) == 1


def as_version(home: Path, version: str) -> None:
    path = home / "server.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))


def test_a_server_of_another_version(home: Path) -> None:
    """It is replaced if nothing uses it; else the command says so and leaves it alone."""
    using = command(home)
    url = url_of(using)
    as_version(home, "3.0.0")
    with pytest.raises(UserError, match=rf"\(Prefect 3.0.0, port \d+\), .* with Prefect {VERSION}"):
        SharedServer(home).start()
    assert answers(url)
    using.communicate("", timeout=20)
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, str(home), "600", LIGHT],
        cwd=ROOT, input="", capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ended.stdout.strip() == url
    assert len(servers(home)) == 1
    assert (now := Running.read(home)) is not None
    assert now.version == VERSION


def test_stop(home: Path) -> None:
    """It is refused while a command uses the server, and waits for the server's end."""
    assert shared.stop(home) is None
    using = command(home)
    url = url_of(using)
    with pytest.raises(UserError, match=f"a running command uses the Prefect server at {url}. End that command first"):
        shared.stop(home)
    using.communicate("", timeout=20)
    stopped = shared.stop(home)
    assert stopped is not None
    assert stopped.url == url
    assert not servers(home)
    assert shared.stop(home) is None


def test_a_server_that_ends_with_its_process_is_found_too(home: Path) -> None:
    """The demo's server is used by the other commands; a second one on its database is refused."""
    with LocalServer(home) as own:
        using = command(home)
        assert url_of(using) == own.url
        with pytest.raises(UserError, match="another Prefect server uses"):
            LocalServer(home).start()
        using.communicate("", timeout=20)
    assert not is_running(home)


def test_files_are_the_owner_s(home: Path) -> None:
    with SharedServer(home):
        modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir() if path.name != "prepared-by"}
    assert set(modes.values()) == {0o600}, modes


def test_text_that_is_no_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_SERVER_IDLE", "soon")
    with pytest.raises(UserError, match="FERRY_SERVER_IDLE: `soon` is not a duration"):
        shared.idle_setting()
    with pytest.raises(UserError, match="--idle: `-1` is not a duration"):
        shared.idle_setting("-1")
    assert shared.idle_setting("2h") == 7200
    monkeypatch.setenv("FERRY_SERVER_IDLE", "0")
    assert shared.idle_setting() == 0


def test_a_server_whose_home_is_deleted_ends(home: Path) -> None:
    """No command could find it again."""
    using = command(home)
    url_of(using)
    using.communicate("", timeout=20)  # while it lives, it makes its lock file again
    running = Running.read(home)
    assert running is not None
    shutil.rmtree(home)
    wait_for("its end", lambda: not Path(f"/proc/{running.pid}").exists(), 20)


def test_a_file_system_without_locks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file and the setting."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"start.lock cannot be locked \(No locks available\). Set PREFECT_HOME"):
        SharedServer(home).start()


def test_only_the_server_itself_is_ended(home: Path) -> None:
    """A process that has the number of a server elsewhere is left alone; commands say where the server is."""
    bystander = subprocess.Popen(["sleep", "60"])
    home.mkdir()
    held = try_lock(home / "server.lock")
    assert held is not None
    try:
        elsewhere = Running.of(bystander.pid, 1, 60.0)
        Running(**{**asdict(elsewhere), "boot_id": "another machine"}).write(home)
        with pytest.raises(UserError, match=rf"another container \(process {bystander.pid} there\). Stop it there"):
            shared.stop(home)
        with pytest.raises(UserError, match="or set PREFECT_HOME to a folder of this machine"):
            SharedServer(home).start()
        assert bystander.poll() is None
    finally:
        os.close(held)
        bystander.kill()
        bystander.wait()


def test_commands_that_start_at_once_after_an_upgrade(home: Path) -> None:
    """They replace the unused server of another version once, and share the new one."""
    url = url_of(first := command(home))
    first.communicate("", timeout=20)
    as_version(home, "3.0.0")
    commands = [command(home) for _ in range(4)]
    assert {url_of(process) for process in commands} == {url}
    for process in commands:
        process.communicate("", timeout=20)
        assert process.returncode == 0
    assert len(servers(home)) == 1
