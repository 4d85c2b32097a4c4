"""The units of systemd: what it says of them itself. Their commands are tried in tests/flows/test_deployment.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.site import UNITS
from tests.support.units import settings

NAMES = ("ferry-server", "ferry-worker")
LEAST_EXPOSED = 2.0  # of 10, by `systemd-analyze security`: below 2 is its "OK"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@needs_systemd
def test_systemd_understands_them(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say: no key is unknown or misspelt, no value is ignored."""
    for name in NAMES:
        text = (UNITS / f"{name}.service").read_text().replace("/opt/ferry/.venv/bin/prefect", sys.executable)
        text = text.replace("/opt/ferry/deployments/stop_runs.sh", "/bin/true")
        (tmp_path / f"{name}.service").write_text(text)
    files = [str(tmp_path / f"{name}.service") for name in NAMES]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False
    )
    about_ours = [
        line for line in (done.stdout + done.stderr).splitlines() if "ferry-" in line or str(tmp_path) in line
    ]
    assert (done.returncode, about_ours) == (0, [])


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_they_are_shut_in(name: str) -> None:
    """`systemd-analyze security` finds little that a service of theirs could do to the machine."""
    most = str(int(LEAST_EXPOSED * 10))
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={most}"]
    done = subprocess.run([*command, str(UNITS / f"{name}.service")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-600:] + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_they_are_started_again_and_are_nobody_s_else(name: str) -> None:
    """Each has a user of its own, who is made by the file beside it; both come back for ever."""
    text = (UNITS / f"{name}.service").read_text()
    service = settings(text)
    (user,) = service["User"]
    assert user != "root"
    assert f"\nu {user} " in (UNITS / "ferry.sysusers.conf").read_text()
    assert (service["Restart"], "\nStartLimitIntervalSec=0\n" in text) == (["always"], True)
    assert service["EnvironmentFile"] == [f"/etc/ferry/{name.removeprefix('ferry-')}.env"]


def test_each_worker_has_a_limit() -> None:
    """No template starts a worker that takes any number of runs; the operator sets another number in one place."""
    deployments = UNITS.parent
    service = settings((UNITS / "ferry-worker.service").read_text())
    assert "FERRY_WORKER_LIMIT=2" in service["Environment"]
    assert "--limit ${FERRY_WORKER_LIMIT} " in service["ExecStart"][0]
    assert '--limit "${FERRY_WORKER_LIMIT:-2}" ' in (deployments / "container" / "start.sh").read_text()
    assert '--limit, "20",' in (deployments / "kubernetes" / "ferry.yaml").read_text()
    assert "--type ecs --limit 20" in (deployments / "ecs" / "README.md").read_text()
    for path in deployments.rglob("*"):
        if (
            path.is_file()
            and path.suffix != ".pyc"
            and "worker start --pool" in (text := path.read_text()).replace(", ", " ")
        ):
            assert "--limit" in text, path


def test_the_users_differ() -> None:
    """Who handles strangers' bytes does not own the records, nor the other way round."""
    users = {settings((UNITS / f"{name}.service").read_text())["User"][0] for name in NAMES}
    assert len(users) == len(NAMES)
