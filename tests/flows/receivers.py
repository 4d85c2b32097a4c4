"""Loopback servers that keep the notifications of a Prefect server, and its client."""

from __future__ import annotations

import http.server
import json
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from flows.deploying.automations import ferry_automations
from flows.server.local import LocalServer
from tests.flows.project import wait_for

WAIT_S = 90.0
UI = "https://prefect.example:8443"
PAGE = re.compile(re.escape(UI) + r"/runs/flow-run/([0-9a-f-]{36})")


@dataclass
class Receiver:
    """A server that keeps `subject` and `body` of each notification."""

    port: int = 0
    got: list[dict[str, str]] = field(default_factory=list)

    def block(self) -> CustomWebhookNotificationBlock:
        """Returns a notification block that sends to this server."""
        return CustomWebhookNotificationBlock(
            name="ferry",
            url=f"http://127.0.0.1:{self.port}/ferry",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
            headers=None,
            cookies=None,
        )

    def of(self, run: UUID) -> list[str]:
        """Returns the subjects of the notifications about a run, recognised by the link in the text."""
        return [message["subject"] for message in self.got if PAGE.findall(message["body"]) == [str(run)]]

    def lines(self, run: UUID, subject: str) -> list[str]:
        """Returns the text with this subject: what happened, where to look, what to do."""
        wait_for(f"`{subject}`, about {run}", lambda: subject in self.of(run), WAIT_S)
        (body,) = (m["body"] for m in self.got if m["subject"] == subject and str(run) in m["body"])
        assert len(body.splitlines()) == 3, body
        return body.splitlines()


@contextmanager
def listening(handler: type[socketserver.BaseRequestHandler], receiver: Receiver) -> Iterator[Receiver]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


@contextmanager
def a_client(server: LocalServer, ui: str = UI) -> Iterator[SyncPrefectClient]:
    """Provide a client of the server, whose UI is at ``ui``; the automations that were made meanwhile are deleted."""
    settings = {PREFECT_API_URL: f"{server.url}/api", PREFECT_UI_URL: ui}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        before = {one.id for one in ferry_automations(client)}
        yield client
        for automation in ferry_automations(client):
            if automation.id not in before:
                client.delete_automation(automation.id)


@contextmanager
def a_webhook() -> Iterator[Receiver]:
    """Provide a webhook that accepts any POST of JSON."""
    receiver = Receiver()

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with listening(Hook, receiver):
        yield receiver


def save(block: Block, name: str) -> None:
    block.save(name, overwrite=True, _sync=True)  # type: ignore[call-arg]
