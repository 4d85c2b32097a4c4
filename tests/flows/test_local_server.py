"""The local Prefect server serves only its owner, and inherits no credentials or code."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferry.core.errors import UserError
from flows.server import local as server
from flows.server import localhost_guard, shared
from flows.server.home import PrefectHome
from flows.server.local import LocalServer
from tests.flows.test_start import _environment_of

NOBODY = 65534
AS_NOBODY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try another user's way in")


def _as_nobody(source: str, *arguments: str) -> str:
    """Returns what a Python program of the user `nobody` prints, or the last line of its error."""
    # The libraries first: they may lie where only their owner reads.
    libraries = "import encodings.idna, http.client, os, socket, sys\n"
    become = f"{libraries}os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", become + source, *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    return ended.stdout.strip() or ended.stderr.strip().rpartition("\n")[2]


ASK = """
def ask(headers):
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
    try:
        connection.request("POST", "/api/block_documents/filter", '{"include_secrets": true}', {"Content-Type": "application/json", **headers})
    except OSError:  # it answers, and closes, before it has the whole request
        pass
    return connection.getresponse()
websocket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAA"}
print(*[ask(headers).status for headers in ({}, websocket)[: int(sys.argv[2])]])
"""  # noqa: E501


@pytest.mark.slow
@AS_NOBODY
def test_another_user_is_answered_with_403(prefect_local: LocalServer) -> None:
    """A request and a WebSocket of another user get 403; the owner's request gets 200."""
    assert _as_nobody(ASK, str(prefect_local.port), "2") == "403 403"
    command = [sys.executable, "-c", "import http.client, sys\n" + ASK, str(prefect_local.port), "1"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "200\n"


BLIND = """
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    body = b'{"name": "written by another user"}'
    connection.sendall(b"POST /api/flows/ HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nContent-Type: application/json\\r\\n"
        b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
    connection.settimeout(10)
    try:
        while sys.argv[2] == "waits" and connection.recv(65536):
            pass
    except OSError:
        pass
print("sent")
"""


@AS_NOBODY
def test_a_request_of_a_socket_that_is_closed_already_changes_nothing(prefect_local: LocalServer) -> None:
    """A request of another user is not executed, although a closed socket shows root's uid."""
    for then in ("waits", *["closes"] * 5):
        assert _as_nobody(BLIND, str(prefect_local.port), then) == "sent"
    with socket.create_connection(("127.0.0.1", prefect_local.port), timeout=30) as connection:
        connection.sendall(
            b"POST /api/flows/filter HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 2\r\n"
            b"Content-Type: application/json\r\n\r\n{}"
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"another user" not in answer


@pytest.mark.parametrize(
    ("line", "uid"),
    [
        ("1: 0100007F:E000 0100007F:1068 01 00000000:00000000 00:00000000 00000000  1000 0 77 1 0 20 4 30 10 -1", 1000),
        ("1: 0100007F:E000 0100007F:1068 06 00000000:00000000 03:00000000 00000000     0 0 0 3 0", None),  # TIME_WAIT
        ("1: 0100007F:E000 0100007F:1069 01 00000000:00000000 00:00000000 00000000  1000 0 77 1 0 20 4 30 10 -1", None),
        ("1: 0100007F:1068 0100007F:E000 01 00000000:00000000 00:00000000 00000000     0 0 78 1 0 20 4 30 10 -1", None),
    ],
)
def test_whose_socket_it_is(line: str, uid: int | None) -> None:
    """The owner is that of the client's end, if a process holds that end."""
    if sys.byteorder != "little":
        pytest.skip("the lines are of a little-endian machine")
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
    assert localhost_guard.owner_of([head, line], ("127.0.0.1", 0xE000), ("127.0.0.1", 0x1068)) == uid


def test_its_pages_are_shown_in_no_frame(prefect_local: LocalServer) -> None:
    """Each answer, of a page or of the API, forbids frames of other sites."""
    for path in ("/", "/api/health"):
        with server.WITHOUT_PROXY.open(prefect_local.url + path, timeout=30) as answer:
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"


def test_a_home_that_was_there_is_made_private(tmp_path: Path) -> None:
    """An existing home, its database and its log become readable for the owner alone."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    for name in ("prefect.db", "server.log"):
        (home / name).touch(mode=0o644)
    files = PrefectHome(home)
    files.make()
    files.prepare()
    assert home.stat().st_mode & 0o777 == 0o700
    for name in ("prefect.db", "server.log"):
        assert (home / name).stat().st_mode & 0o777 == 0o600, name


def test_a_folder_that_others_use_is_not_made_private(tmp_path: Path) -> None:
    """A home such as `/` or `/tmp` is refused, since root would lock out all users."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(UserError, match="a folder of your own"):
        PrefectHome(shared).make()
    assert shared.stat().st_mode & 0o7777 == 0o1777
    assert not list(shared.iterdir())
    with pytest.raises(UserError, match="a folder of your own"):
        PrefectHome(Path("/")).make()


def test_the_files_of_a_new_home_are_private(prefect_local: LocalServer) -> None:
    """Database, write-ahead log and server log of a new home are readable for the owner alone."""
    paths = [*prefect_local.home.glob("prefect.db*"), prefect_local.home / "server.log"]
    assert len(paths) > 2
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert prefect_local.home.stat().st_mode & 0o777 == 0o700


def test_the_server_has_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server inherits only what a Python program needs, and Ferry's settings of Prefect."""
    for name in ("AWS_SECRET_ACCESS_KEY", "OLD_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "PREFECT_API_KEY"):
        monkeypatch.setenv(name, "canary")
    started = LocalServer(tmp_path / "home")
    started.start()
    try:
        found = _environment_of(started)
    finally:
        started.stop()
    assert "canary" not in found.values()
    assert found["PATH"] == os.environ["PATH"]


@pytest.mark.slow
def test_the_server_imports_nothing_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server imports no code and reads no settings from the working directory or its home."""
    canary, home = tmp_path / "canary", tmp_path / "home"
    hostile = f"open({str(canary)!r}, 'a').write(__name__ + '\\n')\n"
    for name in ("ctypes", "uvicorn", "json", "gc", "flows/__init__", "flows/gate", "sitecustomize", "usercustomize"):
        for folder in (tmp_path / "here", home):
            path = folder / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(hostile)
    monkeypatch.chdir(tmp_path / "here")
    with LocalServer(home) as started:
        assert started._process is not None
        assert Path(f"/proc/{started._process.pid}/cwd").readlink() == home
    assert not canary.exists(), canary.read_text()


@contextlib.contextmanager
def _proxy() -> Iterator[tuple[str, list[str]]]:
    """Provide a loopback proxy that refuses all requests: its address, and its requests."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_error(502)

        do_GET = do_POST = do_CONNECT = _refuse

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", asked
        finally:
            listening.shutdown()


PROXIED = """
import json, os, subprocess, sys
from pathlib import Path
from ferry.core.errors import UserError
from flows.server.shared import prefect_server
child = "import json, urllib.request as r; print(json.dumps(sorted(r.getproxies().items())), r.proxy_bypass('127.0.0.1'))"
with prefect_server(Path(sys.argv[1]), lambda: None) as url:
    import prefect
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        assert client.api_healthcheck() is None
    from prefect.utilities.urls import url_for
    assert "True" in subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout
print(os.environ["no_proxy"] == os.environ["NO_PROXY"], os.environ["NO_PROXY"])
"""  # noqa: E501


@pytest.mark.slow
def test_the_servers_requests_go_through_no_proxy(tmp_path: Path) -> None:
    """With HTTP_PROXY set, a run connects to its server directly, and keeps the user's exceptions."""
    with _proxy() as (address, asked), contextlib.ExitStack() as after:
        after.callback(shared.stop, tmp_path / "home")
        given = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        given |= {"http_proxy": address, "HTTP_PROXY": address, "HTTPS_PROXY": address, "NO_PROXY": "old.example"}
        given.pop("PREFECT_API_URL", None)
        ended = subprocess.run(
            [sys.executable, "-c", PROXIED, str(tmp_path / "home")],
            env=given, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
    assert (ended.stdout.strip(), asked) == ("True old.example,127.0.0.1,localhost,::1", []), ended.stderr


def test_no_proxy_at_all_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`NO_PROXY=*` stays unchanged, since Python ignores a `*` beside other hosts."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("no_proxy", raising=False)
    shared.without_proxy()
    assert json.dumps([os.environ["NO_PROXY"], os.environ["no_proxy"]]) == '["*", "*"]'
