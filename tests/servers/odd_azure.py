"""A server that answers as a test says, for what Azurite does otherwise than Azure, and for misbehaviour.

Each request gets the next :class:`Answer`, and the last one again once they are used up. ``asked`` has what arrived.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple, Self


@dataclass(frozen=True)
class Answer:
    """A response. ``lost``: the connection is reset in its place. ``cut``: it ends in the middle of its body."""

    status: int = 201
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    lost: bool = False
    cut: bool = False


def error(status: int, code: str, **headers: str) -> Answer:
    """An error as Azure sends it, with a text that no message may repeat."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>canary-secret</Message></Error>"
    return Answer(status, {"x-ms-error-code": code, **headers}, text.encode())


class Asked(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class OddAzure:
    """The server, on a port of 127.0.0.1. Start it with ``with``."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/account"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", 0)))
                server.asked.append(Asked(self.command, self.path, headers, body))
                answer = server._answers[min(len(server.asked), len(server._answers)) - 1]
                if answer.lost:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
                self.close_connection = answer.cut

            do_PUT = do_HEAD = do_DELETE = do_GET

            def finish(self) -> None:
                with contextlib.suppress(OSError):  # the connection was reset on purpose
                    super().finish()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
