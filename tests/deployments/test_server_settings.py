"""What each template of a Prefect server says of its recorder and of how long records are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.server.home import RECORDER
from tests.flows.site import UNITS, unit

RETENTION = {
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(90 * 24 * 3600),
}


def of_systemd(folder: Path) -> dict[str, str]:
    return unit("server", {}, folder / "log").stated


def of_compose(_: Path) -> dict[str, str]:
    services = yaml.safe_load((UNITS.parent / "compose" / "compose.yaml").read_text())["services"]
    return dict(services["server"]["environment"])


def of_kubernetes(_: Path) -> dict[str, str]:
    manifests = yaml.safe_load_all((UNITS.parent / "kubernetes" / "ferry.yaml").read_text())
    (server,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == ("Deployment", "ferry-server")]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@pytest.mark.parametrize("template", [of_systemd, of_compose, of_kubernetes])
def test_each_server_records_as_the_local_one_does(template: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    """The recorder's settings are those of Ferry's own local server, and finished runs are removed after 90 days."""
    stated = template(tmp_path)
    assert {name: stated.get(name) for name in RECORDER} == RECORDER
    assert {name: stated.get(name) for name in RETENTION} == RETENTION


def test_prefect_reads_them() -> None:
    """Prefect knows each of these names and understands its value."""
    code = (
        "import json; from prefect.settings import get_current_settings as s; x = s().server.services;"
        "print(json.dumps([x.task_run_recorder.batch_size, x.task_run_recorder.flush_interval,"
        " sorted(x.db_vacuum.enabled_vacuum_types), x.db_vacuum.retention_period.days]))"
    )
    environment = {"PATH": os.environ["PATH"], **RECORDER, **RETENTION}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == [50, 1, ["events", "flow_runs", "orphans"], 90]
