"""prefect.yaml under a test's own names, and a worker, so that many tests share one Prefect server."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.flows.project import ROOT, UNDER_PARENT, Cli, Ended, Prefect

STOP_S = 20.0


class Deployed:
    """A copy of the project's prefect.yaml with unique names of deployments and work pool."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.folder, self.cli = folder, cli
        self.mark = secrets.token_hex(4)
        self.pool = f"pool-{self.mark}"
        self.content: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        for one in self.content["deployments"]:
            one["name"] += f"-{self.mark}"
            one["entrypoint"] = f"{ROOT}/{one['entrypoint']}"
            one["work_pool"] = {**one["work_pool"], "name": self.pool}
        self.write()

    def named(self, name: str) -> str:
        """Returns this copy's name for a deployment such as `migrate/prod`."""
        return f"{name}-{self.mark}"

    def entry(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.content["deployments"] if one["name"] == self.named(name))
        return found

    def write(self) -> None:
        (self.folder / "prefect.yaml").write_text(yaml.safe_dump(self.content, sort_keys=False))

    def deploy(self, *arguments: str, **how: Any) -> Ended:
        return self.cli.run(["deploy", *arguments], self.folder, **how)

    def changes(self, *arguments: str) -> dict[str, str]:
        """Returns what a deploy did, such as `deployment migrate/prod` -> created, without alerts."""
        said = [
            one for one in self.deploy(*arguments, "--json").expect(0).json["changes"] if one["kind"] != "automation"
        ]
        return {f"{one['kind']} {one['name']}".replace(f"-{self.mark}", ""): one["what"] for one in said}


def make_pool(prefect_api: Prefect, name: str, kind: str) -> None:
    """Create a work pool for containers, whose only job variable is an image."""
    variables = {"type": "object", "properties": {"image": {"type": "string"}}}
    template = {"job_configuration": {"image": "{{ image }}"}, "variables": variables}
    prefect_api.post("work_pools/", {"name": name, "type": kind, "base_job_template": template})


@contextlib.contextmanager
def worker(cli: Cli, pool: str, log: Path, *options: str, **more: str) -> Iterator[Callable[[], str]]:
    """Run a process worker in the project's root, with ``more`` in its environment, and provide its log."""
    environment = {**cli.environment, "PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONDONTWRITEBYTECODE": "1", **more}
    arguments = ["prefect", "worker", "start", "--pool", pool, "--type", "process", *options]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", UNDER_PARENT, *arguments], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield log.read_text
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
