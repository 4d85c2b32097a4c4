"""Web servers of the distribution that load files of redirects: nginx, Apache, HAProxy and Caddy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.support.proxies import Program, find


def missing(program: str) -> str:
    """Returns why a test with the program is skipped."""
    return f"{program} is not installed; `./deployments/webservers.sh` installs it as root, or says how"


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
