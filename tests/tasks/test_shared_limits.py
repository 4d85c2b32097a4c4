"""How a run counts the others that share its limits, with a stand-in for the Prefect server."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from ferry.ratelimit import JOIN_S
from tasks import prefect_api
from tasks.workers import shared_limits
from tasks.workers.shared_limits import BEAT, LEFT, SharedLimits


class Server:
    """A Prefect server with runs that carry a tag and a beat."""

    def __init__(self, *beats: int | None) -> None:
        self.own = uuid4()
        self.labels: dict[UUID, dict[str, int]] = {self.own: {}}
        self.labels.update({uuid4(): {} if beat is None else {BEAT: beat} for beat in beats})
        self.tags: dict[UUID, list[str]] = {id_: ["shared:old"] for id_ in self.labels} | {self.own: ["ferry"]}
        self.reads = threading.Semaphore(0)

    def update_flow_run_labels(self, run: UUID, labels: dict[str, int]) -> None:
        self.labels[run].update(labels)

    def read_flow_runs(self, flow_run_filter: Any, **_: Any) -> list[Any]:
        self.reads.release()
        asked = {*flow_run_filter.tags.all_}
        return [
            SimpleNamespace(id=id_, labels=dict(its)) for id_, its in self.labels.items() if asked <= {*self.tags[id_]}
        ]

    def read_flow_run(self, run: UUID) -> Any:
        return SimpleNamespace(tags=self.tags[run])

    def update_flow_run(self, run: UUID, tags: list[str]) -> None:
        self.tags[run] = tags


@pytest.mark.parametrize(
    ("beats", "members"), [((), 1), ((7,), 2), ((7, 3), 3), ((LEFT,), 1), ((None,), 1), ((7, LEFT, None), 2)]
)
def test_who_divides_the_limits(beats: tuple[int | None, ...], members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This run and those that beat, each once; not those that left or never joined. A newcomer waits for its part."""
    server, waited = Server(*beats), []  # type: ignore[var-annotated]
    monkeypatch.setattr(prefect_api, "polling_client", lambda: contextlib.nullcontext(server))
    monkeypatch.setattr(shared_limits, "BEAT_S", 0.01)
    limits = SharedLimits("old", str(server.own), pytest.fail)
    limits.join(waited.append)
    assert limits.members == members
    assert waited == ([JOIN_S] if members > 1 else [])
    for _ in range(4):  # its own tag and beat are at the server now, and do not count
        assert server.reads.acquire(timeout=10)
    assert limits.members == members
    assert server.tags[server.own] == ["ferry", "shared:old"]
    assert server.labels[server.own][BEAT] != LEFT
    limits.leave()
    assert server.labels[server.own][BEAT] == LEFT


@pytest.mark.parametrize(("name", "flow_run"), [(None, str(UUID(int=7))), ("old", "")])
def test_a_run_that_shares_nothing(name: str | None, flow_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `limits.shared`, or without a run at Prefect, it asks no server and takes its limits whole."""
    monkeypatch.setattr(prefect_api, "polling_client", lambda: pytest.fail("asked"))
    limits = SharedLimits(name, flow_run, pytest.fail)
    limits.join(lambda _: pytest.fail("waited"))
    limits.leave()
    assert limits.members == 1
