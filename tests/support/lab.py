"""A Prefect server, and machines whose workers take runs: for tests and benchmarks of several machines."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from demo.ports import free_ports
from demo.s3 import S3Server
from tests.flows.deployed import Deployed
from tests.flows.project import ROOT, Cli, Prefect, wait_for
from tests.support.machines import Machine, Network

if TYPE_CHECKING:
    from flows.server.local import LocalServer


ENGINE = "prefect.engine"  # in the command line of each process that executes a run


class Lab:
    """A Prefect server, a network, and machines whose workers take the runs of one work pool.

    ``store_url``: where the S3 server answers, if not at its own address. ``more``: the Prefect server's environment.
    ``query_s``: a worker asks for runs so often, and ends when 12 requests in a row fail, over 45 times as long.
    """

    query_s = 1

    def __init__(self, folder: Path, s3: S3Server, network: Network, store_url: str = "", **more: str) -> None:
        self.folder, self.network = folder, network
        port = free_ports(1)[0]
        self.server_log = folder / "server.log"
        self._log = self.server_log.open("wb")
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PREFECT_HOME": str(folder / "prefect"),
                       "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", **more}  # fmt: skip
        self._server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            env=environment, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self.api = Prefect(f"http://127.0.0.1:{port}", folder / "prefect")
        wait_for("the Prefect server", self._answers, 90)
        self.prefect, self.store = network.relay(self.api.url), network.relay(store_url or s3.endpoint_url)
        home = folder / "home"
        home.mkdir()
        server = SimpleNamespace(home=folder / "client", url=self.prefect.url)
        self.cli = Cli(s3, cast("LocalServer", server), home)
        self.deployed = Deployed(folder, self.cli)
        for one in self.deployed.content["deployments"]:
            one.pop("concurrency_limit", None)  # the slot of a run that was killed would be held for minutes
        self.deployed.write()
        self.deployed.deploy().expect(0)
        self.machines: list[Machine] = []

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            self.api.post("flow_runs/count", {})
            return True
        return False

    def add_machine(self, clock_s: float = 0.0) -> None:
        machine = self.network.add_machine(clock_s)
        self.machines.append(machine)
        self.start_worker(machine)

    def start_worker(self, machine: Machine) -> None:
        log = self.folder / f"{machine.name}.log"
        began = log.read_text().count(" started!") if log.exists() else 0
        environment = {**self.cli.environment, "PREFECT_WORKER_QUERY_SECONDS": str(self.query_s),
                       "PYTHONDONTWRITEBYTECODE": "1", "PREFECT_HOME": str(machine.home / "prefect")}  # fmt: skip
        arguments = ["-m", "prefect", "worker", "start", "--pool", self.deployed.pool, "--type", "process",
                     "--limit", "1", "--name", machine.name]  # fmt: skip
        machine.start([sys.executable, *arguments], ROOT, environment, log)
        wait_for(f"the worker of {machine.name}", lambda: log.read_text().count(" started!") > began, 60)

    def runs(self, **wanted: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.post("flow_runs/filter", {"flow_runs": wanted, "sort": "START_TIME_ASC"})
        return found

    def close(self) -> None:
        self.cli.close()
        self._server.kill()  # its database is thrown away
        self._server.wait()
        self._log.close()


def engines_of(machine: Machine, run: str) -> list[int]:
    """Returns the processes on a machine that execute the flow run with this ID: their environment has it."""
    found = []
    for pid in machine.processes(ENGINE):
        with contextlib.suppress(OSError):  # it has ended
            if run.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found
