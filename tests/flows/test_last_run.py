"""Metrics of a job's last run: what they say, that they stay, and that neither file nor Pushgateway holds up a run."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.states import Cancelled, Completed, Failed
from prometheus_client.parser import text_string_to_metric_families

from ferry.core.progress import Progress
from ferry.core.records import ErrorClass, Status
from tasks.reporting import last_run
from tasks.reporting.last_run import RunVerdict, is_gateway, keeping, record_end
from tasks.reporting.run_view import RunView

LOGGER = logging.getLogger("test.last_run")
OTHER_FAILURE = "UserError: the destination's bucket does not exist"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The textfile collector's directory. The umask is that of the worker's unit."""
    monkeypatch.setenv("FERRY_METRICS_TEXTFILE", str(tmp_path))
    before = os.umask(0o077)
    yield tmp_path
    os.umask(before)


def view(mode: str = "full", copied: int = 2) -> RunView:
    progress = Progress()
    progress.start(copied + 2)
    for _ in range(copied):
        progress.add(Status.COPIED, None, 10)
    progress.add(Status.FAILED, ErrorClass.TIMEOUT, 0)
    return RunView("shop", mode, progress)


def samples(folder: Path) -> dict[str, float]:
    """The samples of all files without `ferry_last_run_`, with the label that is neither name nor mode."""
    found = {}
    for path in folder.glob("*.prom"):
        for family in text_string_to_metric_families(path.read_text()):
            for sample in family.samples:
                assert sample.labels.pop("name") == "shop"
                mode = sample.labels.pop("mode")
                assert path.name.startswith(f"ferry_shop_{mode}")
                (label,) = sample.labels.values() or [""]
                found[f"{sample.name.removeprefix('ferry_last_run_')} {label}".strip()] = sample.value
    return found


def verdict(folder: Path) -> list[str]:
    return [name.split()[1] for name, value in samples(folder).items() if name.startswith("verdict") and value]


def test_a_run_and_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there from the start, follows the run, has its verdict at the end, and others may read it."""
    monkeypatch.setattr(last_run, "EVERY_S", 0.02)
    shown = view()
    with keeping(shown, LOGGER):
        deadline = time.monotonic() + 30
        shown.progress.add(Status.COPIED, None, 5)
        while samples(folder).get("objects copied") != 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert verdict(folder) == ["running"]
        assert "success_timestamp_seconds" not in samples(folder)
    record_end("shop", "full", Completed(message="Completed"), LOGGER)
    found = samples(folder)
    assert verdict(folder) == ["completed"]
    assert (found["objects copied"], found["objects failed"], found["objects skipped"]) == (3, 1, 0)
    assert (found["bytes"], found["rows_left"]) == (25, 0)
    assert found["start_timestamp_seconds"] <= found["success_timestamp_seconds"] <= time.time()
    assert 0 <= found["duration_seconds"] < 60
    assert {path.name for path in folder.iterdir()} == {"ferry_shop_full.prom", "ferry_shop_full_success.prom"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())


@pytest.mark.parametrize("end", [Failed(message=OTHER_FAILURE), Cancelled(message="interrupted")])
def test_the_time_of_the_last_good_run_stays(folder: Path, end: object) -> None:
    """A run that fails or is cancelled changes the verdict alone, also if it ends before it has begun to report."""
    with keeping(view(), LOGGER):
        pass
    record_end("shop", "full", Completed(message="Completed"), LOGGER)
    before = samples(folder)["success_timestamp_seconds"]
    record_end("shop", "full", end, LOGGER)  # type: ignore[arg-type]
    assert verdict(folder) == [end.type.value.lower()]  # type: ignore[attr-defined]
    assert samples(folder)["objects copied"] == 0
    assert samples(folder)["success_timestamp_seconds"] == before


def test_a_refused_run_is_not_the_last_one(folder: Path) -> None:
    """A run that finds the lease held leaves the metrics to the run that holds it."""
    record_end("shop", "full", Failed(message="LeaseHeld: another run of this job is running"), LOGGER)
    assert list(folder.iterdir()) == []


def test_without_settings_nothing_happens(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No thread starts and nothing is logged."""
    for name in ("FERRY_METRICS_TEXTFILE", "FERRY_METRICS_PUSH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(last_run.LastRun, "write", lambda _: pytest.fail("it wrote"))
    with caplog.at_level(logging.DEBUG), keeping(view(), LOGGER):
        pass
    record_end("shop", "full", Completed(message="Completed"), LOGGER)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("FERRY_METRICS_TEXTFILE", "/proc/nothing-here"), ("FERRY_METRICS_PUSH", "http://127.0.0.1:9"),
        ("FERRY_METRICS_PUSH", "http://user:secret@127.0.0.1:9"), ("FERRY_METRICS_PUSH", "127.0.0.1:9091"),
    ],
)  # fmt: skip
def test_a_problem_is_one_warning(
    setting: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder or a gateway that cannot be used is one line, however often it is tried, and never a secret."""
    monkeypatch.setenv(setting, value)
    monkeypatch.setattr(last_run, "EVERY_S", 0.02)
    with keeping(view(), LOGGER):
        time.sleep(0.2)
    record_end("shop", "full", Completed(message="Completed"), LOGGER)
    assert [line.levelname for line in caplog.records] == ["WARNING"]
    assert setting in caplog.text
    assert "secret" not in caplog.text


def test_a_silent_gateway_holds_up_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that accepts connections and never answers takes a run the time that it has for that, once."""
    monkeypatch.setattr(last_run, "LAST_PUSH_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("FERRY_METRICS_PUSH", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(last_run, "PUSH_S", 60.0)
        since = time.monotonic()
        with keeping(view(), LOGGER):
            pass
        record_end("shop", "full", Completed(message="Completed"), LOGGER)
        assert time.monotonic() - since < 30


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("http://gateway:9091", True), ("https://gateway.example/prefix", True), ("http://[::1]:9091", True),
        ("gateway:9091", False), ("http://", False), ("http://a:b@gateway", False), ("http://[::1", False),
        ("file:///tmp/x", False),
    ],
)  # fmt: skip
def test_what_is_a_gateway(address: str, wanted: bool) -> None:
    """Only http and https addresses with a host, without a user and a password."""
    assert is_gateway(address) is wanted


def test_verdicts_are_those_of_prefect() -> None:
    """Each way in which a run can end has a verdict of its name."""
    ends = {kind().type.value.lower() for kind in (Completed, Failed, Cancelled)}
    assert ends | {"running"} == {verdict.value for verdict in RunVerdict}
