"""An API with a list of products and their images, behind a token if a test wants one. It misbehaves as it is told."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from demo.images import make_image

CLIENT, SECRET = "ferry", "s3cret/ &+client"
IMAGE = make_image("jpeg", 7, 40, 30)


@dataclass
class Answer:
    """What the server sends. ``cut`` sends half of the body with the full Content-Length."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]  # names in lower case
    form: dict[str, list[str]]


class ListApi:
    """The server, on a port of 127.0.0.1. ``size`` products, ``per_page`` to a page.

    ``faults`` has answers by path and query, each for one request: `{"/link?page=2": [Answer(status=503)]}`. With
    ``protected``, lists and images need a token of `/token`. Each serves for ``uses`` requests.
    """

    def __init__(self, size: int = 25, per_page: int = 10) -> None:
        self.size, self.per_page = size, per_page
        self.faults: dict[str, list[Answer]] = {}
        self.asked: list[Asked] = []
        self.protected = False
        self.uses = 1_000_000
        self.life_s: object = None  # expires_in
        self.client_auth = "basic"  # or form
        self.issued = 0
        self.tokens: dict[str, int] = {}  # requests left
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def paths(self, start: str = "") -> list[str]:
        """The paths, with queries, of the requests that arrived."""
        found = [f"{one.path}?{one.query}" if one.query else one.path for one in self.asked]
        return [path for path in found if path.startswith(start)]

    def entry(self, number: int) -> dict[str, Any]:
        images = [{"href": f"{self.url}/img/{number}-{n}.jpg"} for n in (1, 2)] if number % 5 else []
        return {
            "id": number,
            "sku": f"S{number}",
            "price": 1.10,
            "images": images,
            "url": f"{self.url}/img/{number}.jpg",
        }

    def answer(self, asked: Asked) -> Answer:
        if asked.path == "/token":
            return self._new_token(asked)
        with self._lock:
            if fault := self.faults.get(f"{asked.path}?{asked.query}" if asked.query else asked.path):
                return fault.pop(0)
            if self.protected:
                token = asked.headers.get("authorization", "").removeprefix("Bearer ")
                if self.tokens.get(token, 0) <= 0:
                    return Answer({"error": "expired"}, 401)
                self.tokens[token] -= 1
        if asked.path.startswith("/img/"):
            return Answer(IMAGE, headers={"Content-Type": "image/jpeg", "ETag": '"1"'})
        if asked.path == "/plain.csv":
            lines = ["url", *(f"{self.url}/img/{n}.jpg" for n in range(self.size))]
            return Answer("\n".join(lines).encode())
        made: Callable[[dict[str, str]], Answer] | None = getattr(self, asked.path.strip("/"), None)
        if made is None:
            return Answer(status=404)
        return made({name: values[0] for name, values in parse_qs(asked.query).items()})

    def _new_token(self, asked: Asked) -> Answer:
        basic = "Basic " + base64.b64encode(b"ferry:s3cret%2F+%26%2Bclient").decode()
        right = {
            "basic": asked.headers.get("authorization") == basic,
            "form": asked.form.get("client_id") == [CLIENT] and asked.form.get("client_secret") == [SECRET],
        }
        if asked.form.get("grant_type") != ["client_credentials"] or not right[self.client_auth]:
            return Answer({"error": "invalid_client", "error_description": "<b>no</b>"}, 401)
        with self._lock:
            self.issued += 1
            token = f"canarytoken-{self.issued}"
            self.tokens[token] = self.uses
            ends = {} if self.life_s is None else {"expires_in": self.life_s}
            return Answer({"access_token": token, "token_type": "Bearer", **ends})

    # --- lists

    def _slice(self, first: int, count: int) -> list[dict[str, Any]]:
        return [self.entry(n) for n in range(first, min(self.size, first + count))]

    def single(self, query: dict[str, str]) -> Answer:
        return Answer(self._slice(0, self.size))

    def link(self, query: dict[str, str]) -> Answer:
        page = int(query.get("page", 1))
        links = [f'<{self.url}/link?page=1>; rel="first"']
        if page * self.per_page < self.size:
            links.append(f'</link?page={page + 1}>; rel="next"')
        return Answer(self._slice((page - 1) * self.per_page, self.per_page), headers={"Link": ", ".join(links)})

    def json(self, query: dict[str, str]) -> Answer:
        page = int(query.get("page", 1))
        more = page * self.per_page < self.size
        following = f"/json?page={page + 1}" if more else None
        return Answer(
            {"data": {"items": self._slice((page - 1) * self.per_page, self.per_page)}, "paging": {"next": following}}
        )

    def cursor(self, query: dict[str, str]) -> Answer:
        first = int(query.get("after", "c0")[1:])
        meta = {"next": f"c{first + self.per_page}"} if first + self.per_page < self.size else {}
        return Answer({"items": self._slice(first, self.per_page), "meta": meta})

    def pages(self, query: dict[str, str]) -> Answer:
        page = int(query["page"])
        total = -(-self.size // self.per_page)
        return Answer({"items": self._slice(page * self.per_page, self.per_page), "pages": total})

    def offset(self, query: dict[str, str]) -> Answer:
        count = min(int(query["limit"]), self.per_page)  # fewer than the client asks for
        return Answer({"items": self._slice(int(query["offset"]), count), "total": self.size})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                headers = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
                asked = Asked(self.command, parts.path, parts.query, headers, parse_qs(sent))
                api.asked.append(asked)
                answer = api.answer(asked)
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if answer.cut else body)
                self.close_connection = answer.cut

            do_POST = do_HEAD = do_GET

        return Handler
