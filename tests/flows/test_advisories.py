"""`make advisories`, asked of a package index on loopback, reports what it finds and what it could not check."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deployments" / "advisories.py"
LOCK = """\
good==1.0 \\
    --hash=sha256:00
bad==2.0 ; python_version >= '3.11' \\
    --hash=sha256:00
Odd.Name==3.0rc1 \\
    --hash=sha256:00
# comment==9
"""
BAD = {
    "id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fixed_in": ["2.1"], "summary": "lets in\x1b[2J everybody",
}  # fmt: skip
WITHDRAWN = {**BAD, "id": "PYSEC-2", "withdrawn": "2026-01-01"}


class Index:
    """An index: path -> a JSON document, bytes, seconds of silence, or an address to redirect to."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.authorization: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.authorization.add(self.headers.get("Authorization"))
                answer = outer.answers.get(self.path)
                if isinstance(answer, float):
                    time.sleep(answer)
                    return
                if isinstance(answer, str):
                    self.send_response(302)
                    self.send_header("Location", answer)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def knows(self, name: str, version: str, *found: dict[str, Any], base: str = "") -> None:
        self.answers[f"{base}/pypi/{name}/{version}/json"] = {"info": {}, "vulnerabilities": list(found)}


@pytest.fixture
def index() -> Iterator[Index]:
    made = Index()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text(LOCK)
    return path


def ask(lock: Path, url: str | None, **env: str) -> tuple[int, str]:
    """Returns the exit code and all output of the command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "http", "HTTP"))}
    environment |= {"https_proxy": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"}
    if url is not None:
        environment["PIP_INDEX_URL"] = url
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(lock)], cwd=ROOT, env={**environment, **env}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_index_s_password_stays_there(index: Index, lock: Path) -> None:
    """The password of an index is not sent to the server of a redirect."""
    other = Index()
    try:
        for name, version in (("good", "1.0"), ("bad", "2.0"), ("odd.name", "3.0rc1")):
            other.knows(name, version)
            path = f"/pypi/{name}/{version}/json"
            index.answers[path] = f"http://127.0.0.1:{other.port}{path}"
        code, said = ask(lock, f"http://me:s3cret@127.0.0.1:{index.port}/simple/")
    finally:
        other.server.shutdown()
        other.server.server_close()
    assert code == 0, said
    assert (len(index.authorization), None in index.authorization) == (1, False)
    assert len(other.asked) == 3
    assert other.authorization == {None}
    assert "s3cret" not in said


def test_what_is_known_is_told(index: Index, lock: Path) -> None:
    """Each locked version is requested once; a vulnerability exits 1, a withdrawn one does not."""
    index.knows("good", "1.0", WITHDRAWN)
    index.knows("bad", "2.0", BAD, WITHDRAWN)
    index.knows("odd.name", "3.0rc1")
    code, said = ask(lock, f"http://127.0.0.1:{index.port}/simple/")
    assert code == 1
    assert "bad 2.0: PYSEC-1 CVE-2026-1; fixed in 2.1. lets in\\x1b[2J everybody" in said
    assert "PYSEC-2" not in said
    assert "3 of 3 locked versions checked, 1 of them with known vulnerabilities" in said
    assert sorted(index.asked) == sorted(index.answers)


def test_nothing_known(index: Index, lock: Path) -> None:
    """Without vulnerabilities the exit code is 0; a password is sent but not printed."""
    for name, version in (("good", "1.0"), ("bad", "2.0"), ("odd.name", "3.0rc1")):
        index.knows(name, version, base="/team")
    code, said = ask(lock, f"http://me:s3cret@127.0.0.1:{index.port}/team/simple")
    assert (code, index.authorization) == (0, {"Basic bWU6czNjcmV0"})
    assert "s3cret" not in said


@pytest.mark.parametrize("answer", [None, b"<html>", {"info": {}}, b"[]"])
def test_an_index_without_them(answer: Any, index: Index, lock: Path) -> None:
    """For an index without the API, the message says that nothing was checked."""
    for name in ("good/1.0", "bad/2.0", "odd.name/3.0rc1"):
        index.answers[f"/pypi/{name}/json"] = answer
    code, said = ask(lock, f"http://me:s3cret@127.0.0.1:{index.port}/simple")
    assert code == 0
    assert "does not offer known vulnerabilities" in said
    assert "Nothing was checked" in said
    assert "s3cret" not in said


def test_some_cannot_be_asked(index: Index, lock: Path) -> None:
    """Packages that the index does not have are named, and the exit code is 2."""
    index.knows("good", "1.0")
    index.knows("bad", "2.0")
    code, said = ask(lock, f"http://127.0.0.1:{index.port}/simple")
    assert code == 2
    assert "not checked: odd.name 3.0rc1: HTTP 404" in said


def test_nobody_answers(lock: Path) -> None:
    """An unreachable index exits 2 without a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, said = ask(lock, f"http://127.0.0.1:{taken.getsockname()[1]}/simple")
    assert code == 2
    assert "Traceback" not in said
    assert said.count("not checked") == 3


def test_the_index_is_pips(index: Index, lock: Path, tmp_path: Path) -> None:
    """Without PIP_INDEX_URL, the index of pip's configuration is used."""
    for name, version in (("good", "1.0"), ("bad", "2.0"), ("odd.name", "3.0rc1")):
        index.knows(name, version)
    config = tmp_path / "pip.conf"
    config.write_text(
        "".join(f"[{part}]\nindex-url = http://127.0.0.1:{index.port}/simple\n" for part in ("global", "install"))
    )
    code, _ = ask(lock, None, PIP_CONFIG_FILE=str(config))
    assert code == 0
    assert len(index.asked) == 3


def test_it_ends(index: Index) -> None:
    """Packages for which the index does not answer in time are named."""
    spec = importlib.util.spec_from_file_location("advisories", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    index.answers = {f"/pypi/p{n}/1/json": 3.0 for n in range(12)}
    known, unanswered = module.check(
        module.Index(f"http://127.0.0.1:{index.port}/simple"), [(f"p{n}", "1") for n in range(12)], within_s=0.4
    )
    assert known == {}
    assert len(unanswered) == 12


def test_every_lock_is_read() -> None:
    """The default lock files exist and name the installed packages."""
    spec = importlib.util.spec_from_file_location("advisories", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert sorted(module.LOCKS) == sorted(path.name for path in ROOT.glob("requirements*.txt"))
    names = {name for name, _ in module.locked(ROOT / lock for lock in module.LOCKS)}
    assert {"prefect", "boto3", "pytest", "pillow"} <= names
