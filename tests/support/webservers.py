"""Web servers of the distribution that load files of redirects: nginx, Apache, HAProxy and Caddy."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ferry.cutover.redirects import apache, caddy, haproxy
from tests.support.proxies import Program, find


def missing(program: str) -> str:
    """Returns why a test with the program is skipped."""
    return f"{program} is not installed; `make webservers` installs it as root, or says how"


class Nginx(Program):
    """An nginx with one server for all old hosts, which includes a file of redirects."""

    def __init__(self, folder: Path, redirects: Path) -> None:
        super().__init__(folder)
        self._redirects = redirects

    def command(self) -> Sequence[str]:
        temporary = "".join(f"{name}_temp_path {self.folder}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
        (self.folder / "conf").write_text(
            f"""
daemon off; {"user root;" if os.geteuid() == 0 else ""} worker_processes 1;
pid {self.folder}/pid; error_log {self.folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
  include {self._redirects};
  access_log off; client_body_temp_path {self.folder}/body; {temporary}
  keepalive_requests 100000; large_client_header_buffers 4 16k;
  server {{
    listen 127.0.0.1:{self.port};
    if ($ferry_redirect) {{ return 301 $ferry_redirect; }}
    location / {{ return 404; }}
  }}
}}
"""
        )
        program = find("nginx")
        assert program is not None
        conf, log = str(self.folder / "conf"), str(self.folder / "error.log")
        return [program, "-p", str(self.folder), "-c", conf, "-e", log]


class Apache(Program):
    """An Apache with one server for all old hosts, which looks redirects up in a text map or a database."""

    def __init__(self, folder: Path, redirects: Path) -> None:
        super().__init__(folder)
        self._map = f"txt:{redirects}"
        self.redirects = redirects

    def command(self) -> Sequence[str]:
        program = find("apache2")
        assert program is not None
        modules = "".join(
            f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
            for name in ("mpm_event", "authz_core", "rewrite")
        )
        (self.folder / "none").mkdir()
        rules = "\n".join(line for line in apache.CONFIGURE if line.startswith(" "))
        (self.folder / "conf").write_text(
            f"""
ServerRoot {self.folder}
ServerName localhost
PidFile {self.folder}/pid
DefaultRuntimeDir {self.folder}
Mutex file:{self.folder} default
ErrorLog {self.folder}/error.log
{modules}
{"User www-data" if os.geteuid() == 0 else ""}
Listen 127.0.0.1:{self.port}
MaxKeepAliveRequests 0
LimitRequestLine 16000
DocumentRoot {self.folder}/none
<VirtualHost *>
{rules.replace("dbm=db:/etc/apache2/ferry-redirects.db", self._map)}
</VirtualHost>
"""
        )
        for path in (self.folder, *self.folder.parents):  # its processes have another user than a root that starts it
            if path.stat().st_uid == os.geteuid() and str(path).startswith(tempfile.gettempdir() + "/"):
                path.chmod(path.stat().st_mode | 0o111)
        return [program, "-D", "FOREGROUND", "-f", str(self.folder / "conf")]


class ApacheDatabase(Apache):
    """The same with a database, which httxt2dbm makes of the text."""

    def command(self) -> Sequence[str]:
        program = find("httxt2dbm")
        assert program is not None
        database = self.folder / "redirects.db"
        subprocess.run([program, "-f", "db", "-i", self.redirects, "-o", database], check=True, capture_output=True)
        self._map = f"dbm=db:{database}"
        return super().command()


class HAProxy(Program):
    """A HAProxy with one frontend for all old hosts."""

    def __init__(self, folder: Path, redirects: Path) -> None:
        super().__init__(folder)
        self._redirects = redirects

    def command(self) -> Sequence[str]:
        program = find("haproxy")
        assert program is not None
        rules = "\n".join(line for line in haproxy.CONFIGURE if line.startswith(" "))
        (self.folder / "conf").write_text(
            f"""
defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 5s
frontend old
    bind 127.0.0.1:{self.port}
{rules.replace("/etc/haproxy/ferry-redirects.map", str(self._redirects))}
    http-request return status 404
"""
        )
        return [program, "-db", "-f", str(self.folder / "conf")]


class Caddy(Program):
    """A Caddy with one site for all old hosts."""

    def __init__(self, folder: Path, redirects: Path) -> None:
        super().__init__(folder)
        self._redirects = redirects

    def command(self) -> Sequence[str]:
        program = find("caddy")
        assert program is not None
        rules = "\n".join(line for line in caddy.CONFIGURE if line.startswith(" "))
        (self.folder / "conf").write_text(
            f"""
{{
    admin off
    auto_https off
    storage file_system {self.folder}
}}
http://:{self.port} {{
    bind 127.0.0.1
{rules.replace("/etc/caddy/ferry-redirects", str(self._redirects))}
    respond 404
}}
"""
        )
        return [
            "env",
            f"HOME={self.folder}",
            program,
            "run",
            "--config",
            str(self.folder / "conf"),
            "--adapter",
            "caddyfile",
        ]
