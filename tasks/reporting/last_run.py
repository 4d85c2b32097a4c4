"""Metrics of a job's last run, which stay when its process has ended (docs/decisions/0066).

Two settings say where they go: a directory that node_exporter reads, and a Pushgateway. Neither delays or ends a run.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ferry.core import LeaseHeld, Progress
from tasks.reporting.metrics import FINAL_STATUSES
from tasks.reporting.run_view import RunView

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from prometheus_client import Metric

TEXTFILE, PUSH = "FERRY_METRICS_TEXTFILE", "FERRY_METRICS_PUSH"
EVERY_S = 60.0
PUSH_S = 5.0  # for one step of a push, such as the connection
LAST_PUSH_S = 10.0  # a run waits this long for its last push
LABELS = ["name", "mode"]  # not `job`: Prometheus gives each series a label `job`, that of its scrape configuration


class RunVerdict(StrEnum):
    """How the last run ended. A run that was killed stays ``running``, and its time of writing stands still."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class LastRun:
    """The metrics of one run, which is the last one of its job and mode."""

    def __init__(self, view: RunView, logger: Any) -> None:
        self._view, self._logger = view, logger
        self._started_at, self._since = time.time(), time.monotonic()
        self._verdict = RunVerdict.RUNNING
        self._warned: set[str] = set()
        self._writing = threading.Lock()
        self._textfile, self._push_to = os.environ.get(TEXTFILE, "").strip(), os.environ.get(PUSH, "").strip()
        if self._push_to and not is_gateway(self._push_to):
            self._warn(PUSH, "it is not http://HOST:PORT without a user and a password")
            self._push_to = ""

    @property
    def wanted(self) -> bool:
        """Whether a setting says where the metrics go."""
        return bool(self._textfile or self._push_to)

    def end(self, verdict: RunVerdict) -> None:
        """Write the metrics for the last time. The run waits at most LAST_PUSH_S for a Pushgateway."""
        self._verdict = verdict
        if self.wanted:
            last = threading.Thread(target=self.write, name="ferry-last-run", daemon=True)
            last.start()
            last.join(LAST_PUSH_S)

    def write(self) -> None:
        """Write the file and push. A problem is a warning, once for each setting."""
        with self._writing:  # or the last write of a run may be one that began before
            if self._textfile:
                self._write_files(Path(self._textfile))
            if self._push_to:
                self._push()

    def families(self) -> Iterator[Metric]:
        """Returns the metrics of the run."""
        from prometheus_client.core import GaugeMetricFamily

        view, s = self._view, self._view.progress.snapshot()
        verdict = GaugeMetricFamily(
            "ferry_last_run_verdict", "1 for the verdict of the last run, 0 for the others.",
            labels=[*LABELS, "verdict"],
        )  # fmt: skip
        for name in RunVerdict:
            verdict.add_metric([view.job, view.mode, name.value], name is self._verdict)
        objects = GaugeMetricFamily(
            "ferry_last_run_objects", "Rows of the last run by status.", labels=[*LABELS, "status"]
        )
        for status in FINAL_STATUSES:
            objects.add_metric([view.job, view.mode, status.value], s.statuses.get(status, 0))
        yield from (verdict, objects)
        yield self._gauge("rows_left", "Rows of the last run without an outcome.", max(0, s.todo - s.done))
        yield self._gauge("bytes", "Bytes that the last run copied.", s.bytes)
        yield self._gauge("duration_seconds", "Duration of the last run.", time.monotonic() - self._since)
        yield self._gauge("start_timestamp_seconds", "Start of the last run.", self._started_at)
        yield self._gauge("updated_timestamp_seconds", "When a run wrote these metrics; its end.", time.time())

    def success(self) -> Iterator[Metric]:
        """Returns the time of success of a completed run. Other runs return none, so that the earlier time stays."""
        if self._verdict is RunVerdict.COMPLETED:
            yield self._gauge("success_timestamp_seconds", "End of the last run that was completed.", time.time())

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(f"ferry_last_run_{name}", help_text, labels=LABELS)
        family.add_metric([self._view.job, self._view.mode], value)
        return family

    def _write_files(self, folder: Path) -> None:
        """Write a file for the run, and a second one for its success, which a later run that fails leaves."""
        name = f"ferry_{self._view.job}_{self._view.mode}"
        try:
            for path, families in (
                (folder / f"{name}.prom", list(self.families())),
                (folder / f"{name}_success.prom", list(self.success())),
            ):
                if families:
                    part = path.with_suffix(f".{os.getpid()}")  # node_exporter reads *.prom alone
                    part.write_bytes(_text(families))
                    part.chmod(0o644)  # node_exporter is another user, and a worker's umask may be 0077
                    part.replace(path)
        except OSError as error:
            self._warn(TEXTFILE, str(error))

    def _push(self) -> None:
        from prometheus_client import pushadd_to_gateway

        key = {"name": self._view.job, "mode": self._view.mode}
        try:
            pushadd_to_gateway(self._push_to, "ferry", _Given([*self.families(), *self.success()]), key, timeout=PUSH_S)
        except Exception as error:  # noqa: BLE001 - whatever a server answers, the run continues
            self._warn(PUSH, str(error) or type(error).__name__)

    def _warn(self, setting: str, why: str) -> None:
        if setting not in self._warned:
            self._warned.add(setting)
            self._logger.warning("%s: the metrics of the last run were not written (%s)", setting, why)


class _Given:
    """A collector of given metrics."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _text(families: list[Metric]) -> bytes:
    from prometheus_client import generate_latest

    return generate_latest(_Given(families))


def is_gateway(address: str) -> bool:
    """Returns whether an address can be that of a Pushgateway: http or https, a host, no user and no password."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return False


_live: LastRun | None = None  # of this process's run


@contextlib.contextmanager
def keeping(view: RunView, logger: Any) -> Iterator[None]:
    """Write the metrics of a run now and every minute until the block ends. :func:`record_end` writes the last ones."""
    global _live
    _live = last = LastRun(view, logger)
    if not last.wanted:
        yield
        return
    done = threading.Event()

    def write_often() -> None:
        last.write()
        while not done.wait(EVERY_S):
            last.write()

    threading.Thread(target=write_often, name="ferry-last-run", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def record_end(job: str, mode: str, state: State[Any], logger: Any) -> None:
    """Write the metrics of a run that has ended, also of one that failed before it began to move anything.

    A run that was refused because another one holds the lease is not the last run: the other one is.
    """
    global _live
    last, _live = _live, None
    if not (state.message or "").startswith(f"{LeaseHeld.__name__}: "):
        last = last or LastRun(RunView(job, mode, Progress()), logger)
        last.end(RunVerdict(state.type.value.lower()))
