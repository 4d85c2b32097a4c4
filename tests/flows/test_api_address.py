"""The API's address comes from the environment or the profile, with TLS settings; a slow local server is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from demo.ports import free_ports
from ferry.core.errors import UserError
from flows.server import api_address
from flows.server import local as server
from flows.server.api_address import check_reachable, given_url, setting
from flows.server.local import LocalServer
from tests.ferry.http.test_tls import certificate
from tests.flows.project import Prefect, Project, serve

PROFILES = """
active = "team"
[profiles.team]
PREFECT_API_URL = "http://team.example/api"
PREFECT_API_KEY = "k"
[profiles.other]
PREFECT_API_URL = "http://other.example/api"
[profiles.bare]
"""
SETTINGS = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_HOME", "PREFECT_API_AUTH_STRING")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder with Prefect profiles, and an environment without Prefect's variables."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").write_text(PROFILES)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    api_address.profile.cache_clear()
    api_address.adopt_profile.cache_clear()


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://team.example/api"),
        ({"PREFECT_API_URL": "http://set.example/api"}, "http://set.example/api"),
        ({"PREFECT_API_URL": ""}, ""),
        ({"PREFECT_PROFILE": "other"}, "http://other.example/api"),
        ({"PREFECT_PROFILE": "bare"}, ""),
        ({"PREFECT_PROFILE": "unknown"}, ""),
        ({"PREFECT_HOME": "elsewhere"}, ""),
        ({"PREFECT_PROFILES_PATH": "elsewhere.toml"}, ""),
    ],
)
def test_the_environment_counts_before_the_profile(
    environment: dict[str, str], url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment takes precedence, and an empty address there disables the profile."""
    monkeypatch.chdir(home)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert given_url() == url
    with contextlib.suppress(KeyError):
        monkeypatch.delenv("PREFECT_API_URL")


@pytest.mark.usefixtures("home")
def test_other_settings_come_from_the_profile_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile's API key is sent, after the environment's, and after an auth string."""
    assert setting("PREFECT_API_KEY") == "k"
    assert api_address._headers() == {"Authorization": "Bearer k"}
    monkeypatch.setenv("PREFECT_API_KEY", "other")
    monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Team": "media", "User-Agent": "x"}')
    assert api_address._headers() == {"Authorization": "Bearer other", "X-Team": "media"}
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
    assert api_address._headers()["Authorization"] == "Basic bWU6c2VjcmV0"
    monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", "X-Team: media")
    with pytest.raises(UserError, match="not a JSON object"):
        api_address._headers()


@pytest.mark.usefixtures("home")
def test_a_redirect_is_sent_no_key() -> None:
    """The server of a redirect does not get the key and custom headers."""
    seen: list[dict[str, str]] = []
    ports: list[int] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            if self.path.startswith("/api/"):
                self.send_response(307)
                self.send_header("Location", f"http://localhost:{ports[0]}/elsewhere")
            else:
                self.send_response(200)
            self.end_headers()
            self.wfile.write(b"null")

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        ports.append(server.server_port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api_address.check_reachable(f"http://127.0.0.1:{server.server_port}/api")
        server.shutdown()
    assert [one.get("authorization") for one in seen] == ["Bearer k", None]


def test_a_damaged_file_of_profiles(home: Path) -> None:
    """A damaged profile file raises UserError with what to do."""
    (home / ".prefect" / "profiles.toml").write_text("active = ")
    with pytest.raises(UserError, match="cannot be read"):
        given_url()


@contextlib.contextmanager
def behind_tls(port: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Provide an address that forwards TLS to ``port``, and the certificate of its temporary authority."""
    file = certificate(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    (own,) = free_ports(1)
    loop = asyncio.new_event_loop()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, back), pipe(there, writer))

    async def end() -> None:
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    listening = loop.run_until_complete(asyncio.start_server(accept, "127.0.0.1", own, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{own}/api", file
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_a_private_authority(prefect_local: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private authority works with its certificate or without verification; else the error names both settings."""
    monkeypatch.setenv("PREFECT_PROFILE", "bare")
    with behind_tls(prefect_local.port, tmp_path) as (url, authority):
        monkeypatch.setenv("PREFECT_API_URL", url)
        with pytest.raises(UserError, match=r"but TLS failed: self.signed certificate.*API_SSL_CERT_FILE") as e:
            check_reachable(url)
        assert "does not answer" not in str(e.value)
        with monkeypatch.context() as m:
            m.setenv("PREFECT_API_SSL_CERT_FILE", str(authority))
            check_reachable(url)
            m.setenv("PREFECT_API_SSL_CERT_FILE", str(tmp_path / "gone.pem"))
            with pytest.raises(UserError, match="cannot be read"):
                check_reachable(url)
        monkeypatch.setenv("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "true")
        check_reachable(url)


@pytest.mark.slow
def test_a_run_on_the_profile_s_server_behind_tls(
    project: Project, origin: Origin, prefect_local: LocalServer, prefect_api: Prefect, tmp_path: Path
) -> None:
    """`ferry run` is recorded at the profile's server, and prints the profile's name."""
    folder = tmp_path / "home" / ".prefect"
    folder.mkdir(parents=True)
    rows, _ = serve(origin, 1)
    project.manifest(rows)
    with behind_tls(prefect_local.port, tmp_path) as (url, authority):
        (folder / "profiles.toml").write_text(
            f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{url}"\nPREFECT_API_SSL_CERT_FILE = "{authority}"\n'
        )
        environment = {"PREFECT_API_URL": None, "PREFECT_HOME": None, "HOME": str(folder.parent)}
        ended = project.ferry("run", "job.yaml", env=environment).expect(0)
    assert f"Prefect server: {url} (PREFECT_API_URL of the profile `team` in {folder}/profiles.toml)" in ended.stderr
    (run,) = prefect_api.runs(project.name)
    assert run["state_type"] == "COMPLETED"


class Late(LocalServer):
    """A local server whose process runs the test's code."""

    code = ""

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.home.mkdir(exist_ok=True)
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self.code, str(self.port)], stdout=log, stderr=log, start_new_session=True
            )
        return self._process


SERVES_LATE = """
import sys, time
from http.server import HTTPServer, SimpleHTTPRequestHandler as Plain
class Fine(Plain):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
time.sleep(2)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Fine).serve_forever()
"""


def test_a_local_server_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A slow server is awaited while its process lives, with a message."""
    monkeypatch.setattr(Late, "code", SERVES_LATE)
    monkeypatch.setattr(server, "SLOW_START_S", 0.5)
    with Late(tmp_path / "home"):
        assert "still starting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no such table')", "exited with 1 before it answered.*no such table"),
        ("import time; time.sleep(600)", r"did not answer in \d+ s.*\(empty\)"),
    ],
)
def test_a_local_server_that_does_not_start(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the end of the server's log, without a traceback."""
    monkeypatch.setattr(Late, "code", code)
    monkeypatch.setattr(server, "LONGEST_START_S", 60.0 if "exit" in code else 1.5)
    with pytest.raises(UserError, match=f"(?s){words}"), Late(tmp_path / "home"):
        pass
