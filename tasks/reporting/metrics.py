"""A run's figures for Prometheus, off unless `FERRY_METRICS` says where (docs/how-to/observe.md, docs/decisions/0027).

They are read when somebody asks, from counters that a run has anyway: an object costs nothing more.
"""

from __future__ import annotations

import contextlib
import os
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
# Of ferry.ratelimit.host_snapshot.HostSnapshot: the metric's name, the field, what it says.
OF_HOSTS_COUNTED = {
    "requests": "Requests to a host, of the busiest 50; from 0 again when a host was forgotten meanwhile.",
    "refused": "Of them answered with 429, 503 or SlowDown.",
}
OF_HOSTS = {
    "in_flight": ("in_flight", "Requests under way at a host."),
    "limit": ("limit", "How many there may be at once."),
    "waiting": ("waiting", "Objects that wait for their turn at a host."),
    "paused_seconds": ("paused_for_s", "For how long a host is still left alone."),
    "latency_seconds": ("latency_s", "How long recent requests took."),
}
SETTLED = (Status.COPIED, Status.UNCHANGED, Status.SKIPPED, Status.FAILED)


def endpoint(text: str) -> tuple[str, int] | None:
    """Address and port to listen on; None for none. Raises ValueError.

    | FERRY_METRICS | listens on |
    |---|---|
    | (nothing) | nowhere |
    | `9464` | 127.0.0.1, port 9464 |
    | `0` | 127.0.0.1, any free port |
    | `0.0.0.0:9464`, `[::]:9464` | that address |
    | anything else | ValueError |
    """
    if not text.strip():
        return None
    address, _, port = text.strip().rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(text)
    return address.strip("[]") or LOOPBACK, int(port)


@contextlib.contextmanager
def served(watched: RunView, logger: Any) -> Iterator[None]:
    """Answers at `/metrics` until the block ends. What stands in its way is a warning, and never the run's end."""
    text = os.environ.get(SETTING, "")
    try:
        at = endpoint(text)
    except ValueError:
        logger.warning("%s=%r is no port and no ADDRESS:PORT: there are no metrics", SETTING, text)
        at = None
    if at is None:
        yield
        return
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(Figures(watched))
    try:
        server, thread = start_http_server(at[1], at[0], registry)
    except (OSError, OverflowError) as error:  # the port of another run, an address of another machine
        logger.warning("%s=%s: cannot listen there (%s); this run has no metrics", SETTING, text, error)
        yield
        return
    logger.info("metrics: http://%s:%d/metrics", f"[{at[0]}]" if ":" in at[0] else at[0], server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Figures:
    """A collector of prometheus_client's: the run's counters at this moment, of all its engine processes."""

    def __init__(self, watched: RunView) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        yield from self._rows()
        yield from self._hosts()

    def _rows(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        watched, progress = self._watched, self._watched.progress
        statuses, classes = progress.outcomes()
        s = progress.snapshot()
        of_run = {name: str(value) for name, value in log_format.about.items() if name != "job"}
        yield InfoMetricFamily(
            "ferry_run", "The run; a label each of what is known of it.",
            value={"name": watched.job, "mode": watched.mode, "version": __version__, **of_run},
        )  # fmt: skip
        objects = CounterMetricFamily(
            "ferry_objects", "Outcomes of objects; one that a further pass tries has one more.", labels=["status"]
        )
        for status in SETTLED:
            objects.add_metric([status.value], statuses[status])
        yield objects
        failures = CounterMetricFamily(
            "ferry_failures", "Outcomes that are failures, or skipped, by their class.", labels=["error_class"]
        )
        for name, rows in sorted(classes.items()):
            failures.add_metric([str(name)], rows)
        yield failures
        yield CounterMetricFamily("ferry_bytes", "Bytes of the objects that were copied.", s.bytes)
        yield GaugeMetricFamily("ferry_rows_planned", "Rows that this run set out to do.", s.todo)
        yield GaugeMetricFamily("ferry_rows_left", "Rows that are still to do.", max(0, s.todo - s.done))
        yield GaugeMetricFamily("ferry_engine_processes", "Engine processes.", watched.processes())

    def _hosts(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        snapshots, opened = self._watched.hosts()
        known = busiest(0, snapshots, 0.0)
        for name, words in OF_HOSTS_COUNTED.items():
            yield _by_host(CounterMetricFamily(f"ferry_host_{name}", words, labels=["host"]), known.hosts, name)
        for name, (field, words) in OF_HOSTS.items():
            yield _by_host(GaugeMetricFamily(f"ferry_host_{name}", words, labels=["host"]), known.hosts, field)
        yield CounterMetricFamily("ferry_connections_opened", "To origins and the destination.", opened)
        yield GaugeMetricFamily("ferry_hosts_left_out", "Hosts that are not among the busiest 50.", known.omitted)


def _by_host(family: Any, hosts: Any, name: str) -> Any:
    for host in hosts:
        family.add_metric([host.host], getattr(host, name))
    return family
