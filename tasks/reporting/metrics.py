"""A run's metrics for Prometheus, served only if `FERRY_METRICS` is set (docs/how-to/observe.md, docs/decisions/0027).

A scrape reads counters that the run has anyway, so metrics cost nothing per object.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ferry import __version__
from ferry.core import Status
from ferry.ratelimit import busiest
from tasks.reporting import log_format
from tasks.reporting.run_view import RunView

if TYPE_CHECKING:
    from prometheus_client import Metric

SETTING = "FERRY_METRICS"
LOOPBACK = "127.0.0.1"
LAST_PORT = 65_535
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
# Fields of ferry.ratelimit.HostSnapshot that are counters, with the help text of the metric of the same name.
HOST_COUNTERS = {
    "requests": "Requests to a host, for the busiest 50 hosts; restarts at 0 if the host was evicted.",
    "refused": "Requests that the host answered with 429, 503 or SlowDown.",
}
HOST_GAUGES = {
    "in_flight": ("in_flight", "Requests in flight to a host."),
    "limit": ("limit", "Limit of concurrent requests to a host."),
    "waiting": ("waiting", "Objects in the queue of a host."),
    "paused_seconds": ("paused_for_s", "Seconds until requests to a paused host resume."),
    "latency_seconds": ("latency_s", "Latency of recent requests to a host."),
}
FINAL_STATUSES = (Status.COPIED, Status.UNCHANGED, Status.SKIPPED, Status.FAILED)


def endpoint(text: str) -> tuple[str, range] | None:
    """Returns the address and the ports to try in turn, or None for no metrics. Raises ValueError for other values.

    | FERRY_METRICS | listens on |
    |---|---|
    | (empty) | nowhere |
    | `9464` | 127.0.0.1, port 9464 |
    | `9464-9473` | 127.0.0.1, the first of these ports that is free: one for each run |
    | `0` | 127.0.0.1, any free port |
    | `0.0.0.0:9464`, `[::]:9464-9473` | that address |
    | anything else | ValueError |
    """
    if not text.strip():
        return None
    address, _, ports = text.strip().rpartition(":")
    found = _PORTS.fullmatch(ports)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if not first <= last <= LAST_PORT:
        raise ValueError(text)
    return address.strip("[]") or LOOPBACK, range(first, last + 1)


@contextlib.contextmanager
def serving_metrics(view: RunView, logger: Any) -> Iterator[None]:
    """Serve `/metrics` until the block ends. A problem is logged as a warning and does not end the run."""
    text = os.environ.get(SETTING, "")
    try:
        at = endpoint(text)
    except ValueError:
        logger.warning("%s=%r is not PORT, FIRST-LAST or ADDRESS:PORT; metrics are off", SETTING, text)
        at = None
    if at is None:
        yield
        return
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(RunCollector(view))
    why: OSError | None = None
    for port in at[1]:
        try:
            server, thread = start_http_server(port, at[0], registry)
            break
        except OSError as error:  # the port is in use, or the address is another machine's
            why = error
    else:
        logger.warning("%s=%s: listening failed (%s); metrics are off", SETTING, text, why)
        yield
        return
    logger.info("metrics: http://%s:%d/metrics", f"[{at[0]}]" if ":" in at[0] else at[0], server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RunCollector:
    """A collector for prometheus_client: the present counters of the run, over all its engine processes."""

    def __init__(self, view: RunView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Returns the run's metrics, then those of its hosts."""
        yield from self._rows()
        yield from self._hosts()

    def _rows(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        view, progress = self._view, self._view.progress
        statuses, classes = progress.outcomes()
        snapshot = progress.snapshot()
        labels_of_run = {name: str(value) for name, value in log_format.run_fields.items() if name != "job"}
        yield InfoMetricFamily(
            "ferry_run", "The run, described by labels.",
            value={"name": view.job, "mode": view.mode, "version": __version__, **labels_of_run},
        )  # fmt: skip
        objects = CounterMetricFamily(
            "ferry_objects", "Outcomes by status; an object that another pass retries has several.", labels=["status"]
        )
        for status in FINAL_STATUSES:
            objects.add_metric([status.value], statuses[status])
        yield objects
        failures = CounterMetricFamily(
            "ferry_failures", "Failed and skipped outcomes by error class.", labels=["error_class"]
        )
        for name, rows in sorted(classes.items()):
            failures.add_metric([str(name)], rows)
        yield failures
        yield CounterMetricFamily("ferry_bytes", "Bytes of the copied objects.", snapshot.bytes)
        yield GaugeMetricFamily("ferry_rows_planned", "Rows that this run has to process.", snapshot.todo)
        yield GaugeMetricFamily(
            "ferry_rows_left", "Rows without an outcome yet.", max(0, snapshot.todo - snapshot.done)
        )
        yield GaugeMetricFamily("ferry_engine_processes", "Engine processes of the run.", view.processes())

    def _hosts(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        snapshots, opened = self._view.hosts()
        shown = busiest(0, snapshots, 0.0)
        for name, help_text in HOST_COUNTERS.items():
            yield _by_host(CounterMetricFamily(f"ferry_host_{name}", help_text, labels=["host"]), shown.hosts, name)
        for name, (field, help_text) in HOST_GAUGES.items():
            yield _by_host(GaugeMetricFamily(f"ferry_host_{name}", help_text, labels=["host"]), shown.hosts, field)
        yield CounterMetricFamily("ferry_connections_opened", "Opened connections, to origins and destination.", opened)
        yield GaugeMetricFamily("ferry_hosts_left_out", "Hosts besides the busiest 50.", shown.omitted)


def _by_host(family: Any, hosts: Any, name: str) -> Any:
    for host in hosts:
        family.add_metric([host.host], getattr(host, name))
    return family
