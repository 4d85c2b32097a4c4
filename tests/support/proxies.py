"""Programs of the distribution for tests of networks: tinyproxy, squid, and an nginx that asks for certificates."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.ports import free_ports

START_WITHIN_S, STOP_WITHIN_S = 20.0, 10.0
_NCSA = Path("/usr/lib/squid/basic_ncsa_auth")


def find(program: str) -> str | None:
    """Returns the path of a program, also of those for root."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def missing(program: str) -> str:
    """Returns why a test with the program is skipped."""
    return f"{program} is not installed; `make proxies` installs it as root, or says how"


class Program(ABC):
    """A program on a port of 127.0.0.1, until the block ends. Its files are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Writes the configuration and returns the command."""

    def __enter__(self) -> Self:
        with (self.folder / "out").open("wb") as out:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"it did not start:\n{(self.folder / 'out').read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Tinyproxy(Program):
    """tinyproxy, which passes everything to ``upstream``, a proxy on a port of this machine that knows the names."""

    def __init__(self, folder: Path, upstream: int, user: str = "") -> None:
        super().__init__(folder)
        self._upstream, self._user = upstream, user

    def command(self) -> Sequence[str]:
        name, _, password = self._user.partition(":")
        lines = [
            f"Port {self.port}", "Listen 127.0.0.1", "Timeout 60", "MaxClients 100",
            f"Upstream http 127.0.0.1:{self._upstream}",
            f'LogFile "{self.folder / "log"}"', f"BasicAuth {name} {password}" if name else "",
        ]  # fmt: skip
        (self.folder / "conf").write_text("\n".join(lines) + "\n")
        program = find("tinyproxy")
        assert program is not None
        return [program, "-d", "-c", str(self.folder / "conf")]


class Squid(Program):
    """squid, for which ``names`` are names of this machine. It has no cache, and CONNECT for every port."""

    def __init__(self, folder: Path, names: Sequence[str], user: str = "", password_hash: str = "") -> None:
        super().__init__(folder)
        self._names, self._user, self._hash = names, user, password_hash

    def command(self) -> Sequence[str]:
        folder = self.folder
        (folder / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in self._names))
        lines = [
            f"http_port 127.0.0.1:{self.port}", f"hosts_file {folder / 'hosts'}", "pid_filename none", "cache deny all",
            "access_log none", f"cache_log {folder / 'log'}", "coredump_dir none", "shutdown_lifetime 0 seconds",
            "pinger_enable off", "netdb_filename none", "visible_hostname lab", f"cache_effective_user {_user()}",
            "dns_nameservers 127.0.0.1", "dns_timeout 1 seconds",  # no look-up leaves this machine
        ]  # fmt: skip
        if self._user:
            (folder / "passwords").write_text(f"{self._user}:{self._hash}\n")
            lines += [
                f"auth_param basic program {_NCSA} {folder / 'passwords'}", "auth_param basic children 1",
                "auth_param basic realm lab", "acl known proxy_auth REQUIRED", "http_access allow known",
            ]  # fmt: skip
        lines += ["http_access deny all" if self._user else "http_access allow all"]
        (folder / "conf").write_text("\n".join(lines) + "\n")
        program = find("squid")
        assert program is not None
        for path in (folder, *folder.iterdir()):
            path.chmod(0o777 if path.is_dir() else 0o666)
        return [program, "-N", "-f", str(folder / "conf")]


def _user() -> str:
    import pwd

    return "proxy" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


class StrictNginx(Program):
    """An nginx that serves ``root`` by HTTPS to clients with a certificate of ``client_ca``."""

    def __init__(self, folder: Path, root: Path, certificate: Sequence[Path], client_ca: Path) -> None:
        super().__init__(folder)
        self._root, self._certificate, self._client_ca = root, certificate, client_ca

    def command(self) -> Sequence[str]:
        temporary = "".join(f"{name}_temp_path {self.folder}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
        (self.folder / "conf").write_text(
            f"""
daemon off; {"user root;" if os.geteuid() == 0 else ""} worker_processes 1;
pid {self.folder}/pid; error_log {self.folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off; types {{ image/jpeg jpg; }} client_body_temp_path {self.folder}/body; {temporary}
  server {{
    listen 127.0.0.1:{self.port} ssl;
    ssl_certificate {self._certificate[0]}; ssl_certificate_key {self._certificate[1]};
    ssl_client_certificate {self._client_ca}; ssl_verify_client on;
    location / {{ root {self._root}; }}
  }}
}}
"""
        )
        program = find("nginx")
        assert program is not None
        conf, log = str(self.folder / "conf"), str(self.folder / "error.log")
        return [program, "-p", str(self.folder), "-c", conf, "-e", log]
