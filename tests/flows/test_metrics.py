"""Metrics are served where configured, never end a run, and follow Prometheus's rules."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo.ports import free_ports
from ferry.core.progress import Progress
from ferry.core.records import ErrorClass, Status
from ferry.ratelimit.host_snapshot import HostSnapshot
from tasks.reporting.metrics import RunCollector, endpoint, serving_metrics
from tasks.reporting.run_view import RunView

LOGGER = logging.getLogger("test.metrics")


def host(number: int) -> HostSnapshot:
    return HostSnapshot(f"img{number}.example", 64, number, 3, 0.0, "why", None, 1000 - number, 1, 0.25)


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Returns the samples by name and first label value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None), ("  ", None), ("9464", ("127.0.0.1", range(9464, 9465))), ("0", ("127.0.0.1", range(1))),
        ("0.0.0.0:9464", ("0.0.0.0", range(9464, 9465))), ("[::]:9464-9465", ("::", range(9464, 9466))),
        ("localhost:1-1", ("localhost", range(1, 2))), ("9464-9473", ("127.0.0.1", range(9464, 9474))),
    ],
)  # fmt: skip
def test_where_it_listens(text: str, wanted: tuple[str, range] | None) -> None:
    """Metrics listen nowhere by default, and on loopback unless an address is named."""
    assert endpoint(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["on", "9464/metrics", "127.0.0.1:", "70000", "-1", "\u0663\u0664", "9473-9464", "65535-65536", "1-", "1-2-3"],
)
def test_what_is_no_port(text: str) -> None:
    """Other values raise ValueError."""
    with pytest.raises(ValueError, match=re.escape(text)):
        endpoint(text)


@pytest.mark.parametrize("text", ["taken", "on", "192.0.2.1:9464"])
def test_nothing_in_its_way_ends_a_run(
    text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A port in use, a word or a foreign address only gives a warning with the setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("FERRY_METRICS", str(taken.getsockname()[1]) if text == "taken" else text)
        with serving_metrics(RunView("job", "full", Progress()), LOGGER):
            pass
    assert [line.levelname for line in caplog.records] == ["WARNING"]
    assert "FERRY_METRICS" in caplog.text


def port_of(caplog: pytest.LogCaptureFixture) -> int:
    """The port that the last line names."""
    return int(caplog.messages[-1].rpartition(":")[2].removesuffix("/metrics"))


def test_runs_of_one_machine_have_a_port_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a range each run takes the first port that is free."""
    (taken,) = free_ports(1)
    monkeypatch.setenv("FERRY_METRICS", f"{taken}-{taken + 20}")
    with socket.socket() as other, caplog.at_level(logging.INFO), contextlib.ExitStack() as stack:
        other.bind(("127.0.0.1", taken))
        other.listen()
        ports = []
        for name in ("first", "second"):
            stack.enter_context(serving_metrics(RunView(name, "full", Progress()), LOGGER))
            ports.append(port_of(caplog))
        assert taken < ports[0] < ports[1] <= taken + 20
        assert "metrics are off" not in caplog.text
        for name, port in zip(("first", "second"), ports, strict=True):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                assert f'name="{name}"' in answer.read().decode()


def test_off_by_default(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without the setting, nothing listens and nothing is logged."""
    monkeypatch.delenv("FERRY_METRICS", raising=False)
    with caplog.at_level(logging.DEBUG), serving_metrics(RunView("job", "full", Progress()), LOGGER):
        assert caplog.records == []


def test_counters_never_fall_and_hosts_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Counters do not fall in a further pass, only 50 hosts are shown, and the port closes."""
    progress = Progress()
    progress.start(3)
    progress.add(Status.COPIED, None, 10)
    progress.add(Status.FAILED, ErrorClass.TIMEOUT, 0)
    progress.add(Status.FAILED, ErrorClass.NOT_FOUND, 0)
    monkeypatch.setenv("FERRY_METRICS", "0")
    hosts = [host(number) for number in range(300)]
    with (
        caplog.at_level(logging.INFO),
        serving_metrics(RunView("job", "full", progress, hosts=lambda: (hosts, 7)), LOGGER),
    ):
        port = port_of(caplog)
        before = scrape(port)
        progress.requeue(1)
        progress.add(Status.COPIED, None, 5)
        after = scrape(port)
    assert before["ferry_objects_total", "failed"] == after["ferry_objects_total", "failed"] == 2
    assert (before["ferry_objects_total", "copied"], after["ferry_objects_total", "copied"]) == (1, 2)
    assert after["ferry_failures_total", "timeout"] == after["ferry_failures_total", "not_found"] == 1
    assert (after["ferry_bytes_total", ""], after["ferry_rows_left", ""]) == (15, 0)
    assert after["ferry_connections_opened_total", ""] == 7
    assert after["ferry_host_in_flight", "img3.example"] == 3
    assert len([name for name, _ in after if name == "ferry_host_in_flight"]) == 50
    assert after["ferry_hosts_left_out", ""] == 250
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_names_are_prometheus_s() -> None:
    """Counters end in _total, and all names are ferry_* with base units."""
    families = list(RunCollector(RunView("job", "full", Progress(), hosts=lambda: ([host(1)], 0))).collect())
    for family in families:
        assert family.name.startswith("ferry_"), family.name
        assert family.type in ("counter", "gauge", "info")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
