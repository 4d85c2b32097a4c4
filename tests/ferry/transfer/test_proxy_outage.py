"""A proxy that does not answer: rows wait without losing an attempt, and the run ends with one error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.origin import Origin
from ferry.core.errors import ObjectError, ProxyUnusable
from ferry.core.records import ErrorClass, Status
from ferry.http import Network, dial
from ferry.job.model import Job
from ferry.ratelimit import Limiter, Permit
from ferry.storage.access import S3Access
from ferry.transfer.chunk import run_chunk
from tests.servers.lab_proxy import LabProxy
from tests.support import helpers

ROWS = 60


@pytest.fixture
def proxy() -> Iterator[LabProxy]:
    with Origin() as origin, LabProxy({"img.shop.example": origin.port}) as server:
        for number in range(ROWS):
            origin.add(f"/{number}.jpg", helpers.IMAGE)
        yield server


def job_in(folder: Path) -> Job:
    listed = helpers.urls(*range(ROWS), base="http://img.shop.example")
    return helpers.make_job(
        manifest=str(helpers.write_list(folder / "list.csv", listed)), concurrency=8, source={},
        destination=(folder / "out").as_uri(), retries={"attempts": 1, "backoff_s": 0.01, "max_backoff_s": 10},
    )  # fmt: skip


def test_rows_wait_for_a_proxy(proxy: LabProxy, tmp_path: Path) -> None:
    """During an outage of the proxy no row fails, though each has one attempt; then all are copied."""
    job, state, access = job_in(tmp_path), helpers.directory_state(tmp_path), S3Access(network=Network(proxy.url))
    (ref,) = helpers.plan(job, state, server=access).chunks
    proxy.down()
    back = threading.Timer(2.5, proxy.up)
    with helpers.engine(job, state, access) as runtime:
        back.start()
        run_chunk(runtime, ref)
        assert not runtime.dispatcher.silent
        assert runtime.limiter.host("img.shop.example:80").silent_for_s == 0
    back.join()
    assert [outcome.status for outcome in helpers.latest(state).values()] == [Status.COPIED] * ROWS
    assert proxy.absolute == {"img.shop.example:80": ROWS}
    tries = sum(outcome.requests for outcome in helpers.latest(state).values())
    assert ROWS < tries < 2.5 * ROWS  # a few rows each second, and not every row


def test_an_outage_shows_nothing_about_the_host() -> None:
    """Failed connections lower the limit of a host, and a proxy's outage does not."""
    limits = []
    for outage in (True, False):
        limiter = Limiter(None, 64, time.monotonic)
        for _ in range(200):
            error = ObjectError(ErrorClass.CONNECTION, "the proxy does not answer")
            error.outage = outage
            permit = Permit(limiter.host("h"))
            permit.failed(error, 0.1)
        limits.append(limiter.snapshot()["h"].limit)
    assert limits[0] > limits[1]


@pytest.mark.parametrize("dead", [True, False])
def test_an_unusable_proxy_ends_the_run(
    dead: bool, proxy: LabProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that never answers, or asks for a password, is Fatal, and all rows stay pending."""
    monkeypatch.setattr(dial, "FIRST_S", 1.0)
    job, state, access = job_in(tmp_path), helpers.directory_state(tmp_path), S3Access(network=Network(proxy.url))
    (ref,) = helpers.plan(job, state, server=access).chunks
    if dead:
        proxy.down()
    else:
        proxy.user = "me:topsecret"
    with helpers.engine(job, state, access) as runtime, pytest.raises(ProxyUnusable, match="the proxy http://127"):
        run_chunk(runtime, ref)
    assert helpers.latest(state) == {}
    assert proxy.refused[407] < ROWS / 2
