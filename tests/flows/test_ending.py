"""What a run tells Prefect as it ends reaches a server that is busy for a moment."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from flows.running import ending
from tasks.reporting.run_end import RunEnd

RUN = UUID("11111111-2222-4333-8444-555555555555")


@contextmanager
def a_busy_server(refusals: int) -> Iterator[tuple[str, list[bytes]]]:
    """An API that answers its first requests for labels with 503, as Prefect's does while SQLite is locked."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(404, b"{}")  # this server knows no CSRF tokens

        def do_PATCH(self) -> None:
            assert self.path == f"/api/flow_runs/{RUN}/labels"
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(503 if len(bodies) <= refusals else 204, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Retry-After", "0.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api", bodies
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("refusals", "requests"), [(0, 1), (2, 3), (9, 3)])
def test_labels_are_sent_again(refusals: int, requests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two refusals are survived; a server that stays busy costs three requests, and no run."""
    debug: list[str] = []
    monkeypatch.setattr(ending, "emit_event", lambda *_args, **_more: None)
    monkeypatch.setattr(ending, "get_run_logger", lambda: SimpleNamespace(debug=debug.append))
    monkeypatch.setattr(ending, "flow_run", SimpleNamespace(id=str(RUN), name="run"))
    monkeypatch.setattr(ending, "deployment", SimpleNamespace(id=None))
    end = RunEnd("shop", "migrate", 1, "Completed", 0, "", {"copied": 5})
    with a_busy_server(refusals) as (url, bodies), temporary_settings({PREFECT_API_URL: url}):
        ending.record(end, Completed())
    assert len(bodies) == requests
    assert {json.dumps(json.loads(body)) for body in bodies} == {json.dumps(end.labels)}
    assert bool(debug) is (refusals > 2)
