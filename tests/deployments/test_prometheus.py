"""deployments/prometheus/ and deployments/grafana/ with real programs: rules, live runs, last runs, each query.

One Prometheus, node_exporter and Pushgateway for all. Slow: whole runs of the command.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from demo.origin import Origin, Trouble
from demo.ports import free_ports
from tests.flows.project import ROOT, Cli, Prefect, Project, fold, serve, wait_for
from tests.support.monitoring import FOLDER, NodeExporter, Prometheus, Pushgateway, needs_monitoring

pytestmark = pytest.mark.slow
DASHBOARD = json.loads((ROOT / "deployments" / "grafana" / "ferry.json").read_text())
SEEN_S = 60.0  # it scrapes every second; a busy machine may take longer


class Watch:
    """The three programs; ``env`` has a run use them."""

    def __init__(self, prometheus: Prometheus, exporter: NodeExporter, gateway: Pushgateway, page: int) -> None:
        self.prometheus, self.exporter = prometheus, exporter
        self.env = {
            "FERRY_METRICS": str(page),
            "FERRY_METRICS_TEXTFILE": str(exporter.textfiles),
            "FERRY_METRICS_PUSH": f"http://127.0.0.1:{gateway.port}",
        }

    def sees(self, expression: str) -> None:
        """Wait until a query finds a series of each source: the file and the push."""

        def sources() -> list[str]:
            return sorted(series["metric"]["job"] for series in self.prometheus.query(expression))

        wait_for(expression, lambda: sources() == ["ferry", "node"], SEEN_S)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    needs_monitoring()
    folder = tmp_path_factory.mktemp("monitoring")
    (page,) = free_ports(1)
    with NodeExporter(folder / "exporter") as exporter, Pushgateway(folder / "gateway") as gateway:
        ports = {9464: page, 9100: exporter.port, 9091: gateway.port}
        with Prometheus(folder / "prometheus", ports) as prometheus:
            yield Watch(prometheus, exporter, gateway, page)


@pytest.mark.parametrize(
    "command", [["check", "config", "prometheus.yml"], ["test", "rules", "ferry.rules.test.yml"]], ids=lambda c: c[0]
)
def test_promtool_takes_the_files(command: list[str]) -> None:
    """The configuration and its rules are valid, and each rule goes off when its test says so."""
    needs_monitoring()
    done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = (FOLDER / "ferry.rules.yml").read_text()
    tests = (FOLDER / "ferry.rules.test.yml").read_text()
    for line in rules.splitlines():
        if "- alert: " in line:
            assert f"alertname: {line.partition('alert: ')[2]}\n" in tests, line


def queries() -> list[str]:
    """The queries of the dashboard's panels, as Grafana fills them in."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [query.replace("$__rate_interval", "10s").replace("$name", ".*") for query in found]


def test_live_and_last_runs(project: Project, origin: Origin, prefect_api: Prefect, watch: Watch) -> None:
    """A run that fails fires an alert, one that is killed stays running, and one that is completed ends both.

    Meanwhile each query of the dashboard finds series.
    """
    rows, bodies = serve(origin, 60)
    bad, worse = [
        {"sku": name, "url": origin.add(f"/{name}.jpg", b"", fault=Trouble.NOT_FOUND)} for name in ("bad", "worse")
    ]
    project.job(failure_budget=0, concurrency=2)
    project.manifest([bad, *rows[:5]])
    mine = f'{{name="{project.name}"}}'
    verdict = f'ferry_last_run_verdict{{name="{project.name}", verdict="%s"}} == 1'

    project.ferry("run", "job.yaml", env=watch.env).expect(1)
    wait_for("the alert", lambda: ("FerryRunFailed", project.name) in watch.prometheus.alerts(), SEEN_S)
    watch.sees(verdict % "failed")
    assert watch.prometheus.query(f"ferry_last_run_success_timestamp_seconds{mine}") == []

    origin.latency_s = 2.0
    project.job(failure_budget=1, concurrency=2)
    project.manifest([bad, *rows])
    process = project.fork("run", "job.yaml", "--json", env=watch.env)
    watch.sees(verdict % "running")
    failed = ("FerryRunFailed", project.name)
    wait_for("the alert to end", lambda: failed not in watch.prometheus.alerts(), SEEN_S)
    assert process.poll() is None
    wait_for("outcomes", lambda: len(fold(project.state)) > 8)
    process.kill()
    wait_for("the page to go", lambda: not watch.prometheus.query(f"ferry_run_info{mine}"), SEEN_S)
    watch.sees(verdict % "running")

    project.job(failure_budget=2, concurrency=2)
    project.manifest([worse, bad, *rows])
    process = project.fork("run", "job.yaml", "--json", env=watch.env)
    while_live = [query for query in queries() if "success" not in query]
    wait_for("series for each query", lambda: all(map(watch.prometheus.query, while_live)), 90)
    origin.latency_s = 0
    counts = Cli.end(process, ("run",)).expect(0).json["counts"]
    assert (counts["copied"] + counts["unchanged"], counts["failed"]) == (len(bodies), 2)
    watch.sees(verdict % "completed")
    watch.sees(f"ferry_last_run_success_timestamp_seconds{mine}")
    assert [query for query in queries() if "last_run" in query and not watch.prometheus.query(query)] == []
    assert watch.prometheus.query("node_textfile_scrape_error")[0]["value"][1] == "0"
    assert failed not in watch.prometheus.alerts()
    assert project.stored().keys() == bodies.keys()
