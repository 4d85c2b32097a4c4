"""An nginx that writes one access log for each of its usual formats."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.proxies import Program, find

FORMATS = {
    "combined": "",
    "vhost": """log_format vhost '$host:$server_port $remote_addr - $remote_user [$time_local] '
        '"$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"';""",
    "json": """log_format json escape=json '{"time":"$time_iso8601","host":"$host","request_method":"$request_method",'
        '"request_uri":"$request_uri","status":$status,"agent":"$http_user_agent"}';""",
}


class LoggingNginx(Program):
    """nginx serves ``root``; :meth:`log` is the path of a log."""

    def __init__(self, folder: Path, root: Path, per_s: int | None = None) -> None:
        """``per_s``: refuse more requests per second than this with 429."""
        super().__init__(folder)
        self._root, self._per_s = root, per_s

    def log(self, format_: str) -> Path:
        return self.folder / f"{format_}.log"

    def command(self) -> Sequence[str]:
        temporary = "".join(f"{name}_temp_path {self.folder}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
        logs = "".join(f"access_log {self.log(name)} {name};" for name in FORMATS)
        zone = f"limit_req_zone $server_port zone=all:1m rate={self._per_s}r/s; limit_req_status 429;"
        limit = f"limit_req zone=all burst={self._per_s} nodelay;"
        zone, limit = (zone, limit) if self._per_s else ("", "")
        (self.folder / "conf").write_text(
            f"""
daemon off; {"user root;" if os.geteuid() == 0 else ""} worker_processes 1;
pid {self.folder}/pid; error_log {self.folder}/error.log crit;
events {{ worker_connections 256; }}
http {{
  types {{ image/jpeg jpg; }} client_body_temp_path {self.folder}/body; {temporary}
  {" ".join(FORMATS.values())} {zone}
  {logs}
  server {{ listen 127.0.0.1:{self.port}; location / {{ root {self._root}; {limit} }} }}
}}
"""
        )
        program = find("nginx")
        assert program is not None
        conf, log = str(self.folder / "conf"), str(self.folder / "error.log")
        return [program, "-p", str(self.folder), "-c", conf, "-e", log]

    def ask(self, request: bytes) -> bytes:
        """Sends bytes, and returns the start of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(4096)

    def get(self, target: bytes, method: bytes = b"GET", host: bytes = b"img.example") -> bytes:
        return self.ask(b"%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (method, target, host))
