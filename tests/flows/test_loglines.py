"""Log lines name their run and chunk, as text or JSON, and long runs log few of them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from tasks.reporting import log_format
from tasks.reporting.log_format import JsonLines, TextLines, next_report_s
from tasks.reporting.prefect_logs import ExpectedErrors, Thinned
from tests.flows.project import ROOT

RUN: dict[str, Any] = {"flow_run_id": "fae78618-b73c-49db-874b-62dcb24edcca", "flow_run_name": "products"}
TASK: dict[str, Any] = {
    **RUN,
    "task_run_id": "01a21549-0000-7000-8000-000000000000",
    "task_run_name": "chunk-3-of-12-2e4bd0e50415",
}
WEEK_S, NIGHT_S = 7 * 86_400.0, 12 * 3600.0


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_format, "run_fields", {})


def record(text: str, name: str = "prefect.task_runs", **more: Any) -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(name, logging.INFO, "x.py", 1, text, (), None, extra=more)


def reports(until_s: float) -> int:
    """Returns the number of progress lines of a run of that length."""
    elapsed_s, lines = 0.0, 0
    while (elapsed_s := elapsed_s + next_report_s(elapsed_s)) < until_s:
        lines += 1
    return lines


@pytest.mark.parametrize(("length_s", "at_least", "at_most"), [(60, 10, 12), (3600, 60, 100), (WEEK_S, 300, 500)])
def test_progress_is_said_less_often_the_longer_a_run_is_on(length_s: float, at_least: int, at_most: int) -> None:
    """The interval of progress lines grows from 5 s to half an hour, as its table says."""
    assert at_least <= reports(length_s) <= at_most


def test_a_night_of_chunks_in_trouble_says_less_than_a_thousand_lines() -> None:
    """12,000 retry lines in 12 hours become a few hundred, which count those dropped."""
    now = [0.0]
    few = Thinned(clock=lambda: now[0])
    passed: list[logging.LogRecord] = []
    for number in range(12_000):
        now[0] = number * NIGHT_S / 12_000
        line = record(f"Task run failed with exception: ... - Retry {number}")
        if few.filter(line):
            passed.append(line)
    assert len(passed) + reports(NIGHT_S) < 500
    counted = sum(
        int(text.rpartition(" (")[2].split(" similar lines")[0].replace(",", ""))
        for line in passed
        if "similar lines" in (text := line.getMessage())
    )
    assert counted + len(passed) == pytest.approx(12_000, abs=600)  # the last ones are counted by the next line
    few.reset()
    assert few.filter(record("of the next run"))


def test_what_is_well_is_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished chunks are logged only when debugging; failed chunks and the run's end always are."""
    people = ExpectedErrors()
    logger = logging.getLogger("prefect.task_runs")
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # of isEnabledFor
    assert not people.filter(record("Finished in state Completed()"))
    assert not people.filter(record("Finished in state Cached(type=COMPLETED)"))
    assert people.filter(record("Finished in state Failed('...')"))
    assert people.filter(record("Finished in state Completed('this run: ...')", "prefect.flow_runs"))
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    assert people.filter(record("Finished in state Completed()"))


def test_json_lines_are_one_object_each() -> None:
    """A JSON line is one object with run, chunk and UTC time, for any text."""
    log_format.run_fields.update(RUN, job="products", run_no=7)
    text = 'two\nlines, a "quote", :cat:, \x1b[31m, \u2028, [red]'
    line = JsonLines().format(record(text, **TASK))
    assert line.isascii()
    assert "\n" not in line
    found = json.loads(line)
    assert datetime.fromisoformat(found.pop("time")).utcoffset() is not None
    assert found == {
        "level": "INFO", "logger": "prefect.task_runs", "message": text, "job": "products", "run_no": 7,
        "chunk": "2e4bd0e50415", **TASK,
    }  # fmt: skip
    other = json.loads(JsonLines().format(record("x", "asyncio")))
    assert (other["flow_run_id"], other["run_no"]) == (RUN["flow_run_id"], 7)
    assert "chunk" not in other
    log_format.run_fields.clear()
    assert set(json.loads(JsonLines().format(record("x", "asyncio")))) == {"time", "level", "logger", "message"}


def test_text_lines_say_which_run() -> None:
    """A text line names the run, with the first digits of its ID, and the chunk."""
    shown = TextLines().format(record("60 rows", "prefect.flow_runs", **RUN))
    assert shown.endswith("| INFO    | Flow run 'products' fae78618 - 60 rows")
    shown = TextLines().format(record("failed", **TASK))
    assert shown.endswith("| Task run 'chunk-3-of-12-2e4bd0e50415' of 'products' fae78618 - failed")
    log_format.run_fields.update(RUN)
    assert TextLines().format(record("x", "asyncio")).endswith("| asyncio fae78618 - x")


@pytest.mark.parametrize("form", ["json", "text"])
def test_engine_processes_say_it_too(form: str) -> None:
    """Log lines and warnings in an engine process have the run's format and ID."""
    code = (
        "import logging, warnings; from tasks.reporting import log_format; "
        f"log_format.configure_plain_logging({ {**RUN, 'job': 'products'}!r}); "
        "logging.getLogger('asyncio').error('lost'); warnings.warn('old')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "FERRY_LOG_FORMAT": form},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    if form == "json":
        assert [json.loads(line)["flow_run_id"] for line in lines] == [RUN["flow_run_id"]] * 2
    else:
        assert "| ERROR   | asyncio fae78618 - lost" in lines[0]


def test_an_unknown_format_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown format is named, and lines stay text."""
    monkeypatch.setenv("FERRY_LOG_FORMAT", "jsn")
    assert "'jsn' is neither `text` nor `json`" in str(log_format.unknown_format())
    assert not log_format.as_json()
    monkeypatch.setenv("FERRY_LOG_FORMAT", "JSON")
    assert log_format.unknown_format() is None
    assert log_format.as_json()
