"""Prometheus, node_exporter's textfile collector and the Pushgateway, as the distribution has them."""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.flows.project import ROOT
from tests.support.proxies import Program, find

FOLDER = ROOT / "deployments" / "prometheus"
PROGRAMS = ("prometheus", "promtool", "prometheus-node-exporter", "prometheus-pushgateway")


def needs_monitoring() -> None:
    """Skip if a program is missing and only root may install it. As root, `make test-rest` has installed them."""
    if lacking := [program for program in PROGRAMS if find(program) is None]:
        words = f"{', '.join(lacking)} not installed; `make monitoring` installs them as root, or says how"
        pytest.fail(words) if os.geteuid() == 0 else pytest.skip(words)


class NodeExporter(Program):
    """node_exporter with the textfile collector alone."""

    @property
    def textfiles(self) -> Path:
        return self.folder / "textfiles"

    def command(self) -> Sequence[str]:
        self.textfiles.mkdir(exist_ok=True)
        return [
            "prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{self.port}", "--collector.disable-defaults",
            "--collector.textfile", f"--collector.textfile.directory={self.textfiles}",
        ]  # fmt: skip


class Pushgateway(Program):
    """A Pushgateway in memory."""

    def command(self) -> Sequence[str]:
        return ["prometheus-pushgateway", f"--web.listen-address=127.0.0.1:{self.port}"]


class Prometheus(Program):
    """Prometheus with the configuration and rules of deployments/, other ports, and a scrape every second."""

    def __init__(self, folder: Path, ports: dict[int, int]) -> None:
        """``ports``: those of the configuration, and those to scrape instead."""
        super().__init__(folder)
        text = (FOLDER / "prometheus.yml").read_text().replace(": 15s", ": 1s")
        for given, real in ports.items():
            assert text.count(f":{given}\n") == 1, given
            text = text.replace(f":{given}\n", f":{real}\n")
        (folder / "prometheus.yml").write_text(text)
        (folder / "ferry.rules.yml").write_bytes((FOLDER / "ferry.rules.yml").read_bytes())

    def command(self) -> Sequence[str]:
        return [
            "prometheus", f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Returns the series of an instant query. Raises HTTPError for a query that Prometheus refuses."""
        return list(self._get("query", query=expression)["result"])

    def alerts(self) -> set[tuple[str, str]]:
        """Returns the alerts that fire, each with the name of its job."""
        firing = [one["labels"] for one in self._get("alerts")["alerts"] if one["state"] == "firing"]
        return {(labels["alertname"], labels.get("name", "")) for labels in firing}

    def _get(self, path: str, **asked: str) -> Any:
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]
