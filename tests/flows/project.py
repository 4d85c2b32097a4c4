"""Support for tests of the `ferry` command: one Prefect server, commands in their own processes, projects."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import yaml

from demo.images import make_image
from demo.origin import Origin
from demo.prefect_api import ask
from demo.s3 import S3Server
from flows.server.home import quiet_environment
from flows.server.local import SERVER, LocalServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).parents[2]
COMMAND_S = 120.0
ALIVE_S = 900.0  # as long as a command may run beside a test
TRACEBACK = "Traceback (most recent call last)"
QUICK = {"attempts": 2, "backoff_s": 0.05, "max_backoff_s": 5, "chunk_delay_s": 0.3, "chunk_attempts": 1, "passes": 0}

Environment = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    arguments: Sequence[str]
    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr

    @property
    def json(self) -> Any:
        """The JSON document on standard output."""
        return json.loads(self.stdout)

    def expect(self, code: int) -> Ended:
        """Fails unless the command ended with this exit code and without a traceback."""
        assert self.code == code, f"ferry {' '.join(self.arguments)}: exit {self.code}, not {code}\n{self.text}"
        assert TRACEBACK not in self.text, f"ferry {' '.join(self.arguments)}: a traceback\n{self.text}"
        return self


class Forked:
    """A command that :meth:`Cli.fork` started, with what tests use of a Popen object. Its output goes to files."""

    def __init__(self, pid: int, out: tempfile.TemporaryDirectory[str]) -> None:
        self.pid, self._out = pid, out
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            self.returncode = int(Path(self._out.name, "code").read_text())
        return self.returncode

    def wait(self, timeout: float = COMMAND_S) -> int:
        wait_for(f"the end of process {self.pid}", lambda: self.poll() is not None, timeout)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = COMMAND_S) -> tuple[str, str]:
        self.wait(timeout)
        return Path(self._out.name, "out").read_text(), Path(self._out.name, "err").read_text()

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Cli:
    """`python -m flows`, with an environment that has nothing of the machine's.

    Imports take two thirds of a command's time. :meth:`run` and, beside the test, :meth:`fork` fork the command from a
    process that has done the imports. Tests of the process itself (signals, servers, other settings of Prefect) use
    :meth:`start`.
    """

    def __init__(self, s3: S3Server, prefect: LocalServer, home: Path) -> None:
        self.s3 = s3
        self._one_at_a_time = threading.Lock()
        self.environment: dict[str, str] = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            **quiet_environment(prefect.home),
            "PREFECT_API_URL": f"{prefect.url}/api",
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",  # or boto3 would ask 169.254.169.254
        }
        # Here and not at the first command: the parent-death signal is of the thread that forks.
        self._forker = subprocess.Popen(
            [sys.executable, "-c", _FORKER], env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, arguments: Sequence[str], folder: Path, env: Environment = {}) -> subprocess.Popen[str]:
        """Start the command in its own process group. ``env`` adds variables, or removes them (None)."""
        merged = {**self.environment, **env}
        return subprocess.Popen(
            [sys.executable, "-c", UNDER_PARENT, "flows", *arguments],
            cwd=folder, env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, arguments: Sequence[str], folder: Path, env: Environment = {}, within_s: float = COMMAND_S) -> Ended:
        if any(name.startswith("PREFECT_") for name in env):  # read when Prefect is imported
            return self.end(self.start(arguments, folder, env), arguments, within_s)
        return self._fork(arguments, folder, env, within_s)

    def fork(self, arguments: Sequence[str], folder: Path, env: Environment = {}, first: str = "") -> Forked:
        """Fork the command, and return while it runs. It is killed with this object, or after ALIVE_S.

        ``first`` is code that it executes before: a change of a constant, or of what the machine answers.
        """
        out = tempfile.TemporaryDirectory()
        return Forked(self._ask(arguments, folder, env, ALIVE_S, out.name, beside=True, first=first), out)

    def _fork(self, arguments: Sequence[str], folder: Path, env: Environment, within_s: float) -> Ended:
        with tempfile.TemporaryDirectory() as out:
            code = self._ask(arguments, folder, env, within_s, out, beside=False)
            return Ended(arguments, code, Path(out, "out").read_text(), Path(out, "err").read_text())

    def _ask(
        self,
        arguments: Sequence[str],
        folder: Path,
        env: Environment,
        within_s: float,
        out: str,
        *,
        beside: bool,
        first: str = "",
    ) -> int:
        """Returns what the forking process answers: an exit code, or with ``beside`` the ID of the new process."""
        kept = {name: value for name, value in {**self.environment, **env}.items() if value is not None}
        asked = {
            "arguments": list(arguments), "folder": str(folder), "env": kept, "out": out, "within": within_s,
            "beside": beside, "first": first,
        }  # fmt: skip
        with self._one_at_a_time:
            assert self._forker.stdin is not None
            assert self._forker.stdout is not None
            self._forker.stdin.write(json.dumps(asked) + "\n")
            self._forker.stdin.flush()
            return int(self._forker.stdout.readline())

    def close(self) -> None:
        assert self._forker.stdin is not None
        self._forker.stdin.close()
        self._forker.wait(10)

    @staticmethod
    def end(process: subprocess.Popen[str] | Forked, arguments: Sequence[str], within_s: float = COMMAND_S) -> Ended:
        try:
            stdout, stderr = process.communicate(timeout=within_s)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        assert process.returncode is not None
        return Ended(arguments, process.returncode, stdout, stderr)


# `python -m MODULE` as a user starts it, but it goes down with the tests, however they end. SIGINT has its default
# effect also in the `&` jobs of a script, which ignore it with all that they start: a worker turns its first SIGTERM
# into one. Fewer garbage collections save a sixth of Prefect's imports.
UNDER_PARENT = """
import ctypes, gc, runpy, signal, sys
gc.set_threshold(50_000, 20, 100)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


# Imports the command once and forks for each request; ends with its standard input.
_FORKER = """
import atexit, ctypes, gc, json, os, signal, sys, threading
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
import flows.cli.local_run, flows.cli.main, flows.migrate, flows.cli.terminal, flows.verify, flows.running.reporter
import flows.cli.deploy, flows.cli.remote, flows.deploying.deployments, flows.cli.remote_run
import boto3, fastapi, prefect.flow_engine, prefect.task_engine
from tests.support.forked_planner import fork_planners
fork_planners()
gc.freeze()  # else each command ends with half a second of collecting what the imports made
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if not pid:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if asked["beside"] and (command := os.fork()):  # this process waits for it, and ends it with the tests
            print(command, flush=True)
            code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
            with open(asked["out"] + "/part", "w") as file:
                file.write(str(code))
            os.rename(file.name, asked["out"] + "/code")
            os._exit(0)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        os.setsid()
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked["out"] + "/" + name, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["ferry", *asked["arguments"]]
        signal.alarm(int(asked["within"]))
        exec(asked["first"], {})
        try:
            flows.cli.main.main()
        except SystemExit as ended:
            # As Python ends, without the teardown of modules: DuckDB would count what gc.freeze() keeps as lost.
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code or 0)
    if not asked["beside"]:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)
"""


class Prefect:
    """Requests to Prefect's API without Prefect's client."""

    def __init__(self, url: str, home: Path) -> None:
        self.url, self.home = url, home

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return ask(self.url, path, body)

    def runs(self, job: str, flow: str = "migrate") -> list[dict[str, Any]]:
        """Returns the job's flow runs, oldest first."""
        named = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"name": {"like_": job}}}
        runs: list[dict[str, Any]] = self.post("flow_runs/filter", {**named, "sort": "START_TIME_ASC"})
        return [run for run in runs if run["name"].startswith(job)]

    def chunk_states(self, run: Mapping[str, Any]) -> list[str]:
        """Returns the sorted state names of a run's chunk tasks, once the server has recorded its last task."""
        mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        last = {"task_runs": {"name": {"any_": ["report"]}, "state": {"type": {"any_": ["COMPLETED"]}}}}
        wait_for("the last task to be recorded", lambda: self.post("task_runs/count", {**mine, **last}))
        tasks = self.post("task_runs/filter", {**mine, "task_runs": {"name": {"like_": "chunk-"}}})
        return sorted(task["state_name"] for task in tasks)

    def database(self) -> bytes:
        """Returns the bytes of the server's database, including its write-ahead log."""
        return b"".join(path.read_bytes() for path in sorted(self.home.glob("prefect.db*")))


class Project:
    """A folder with job.yaml and a manifest, as a user has it, with a unique job name."""

    def __init__(self, folder: Path, cli: Cli, bucket: str) -> None:
        self.folder, self.cli, self.bucket = folder, cli, bucket
        self.name = f"job-{secrets.token_hex(4)}"
        self.prefix = "products/"
        self.settings: dict[str, Any] = {}
        self.forked: list[Forked] = []
        self.job()

    @property
    def state(self) -> Path:
        return self.folder / ".ferry" / self.name

    def job(self, **settings: Any) -> None:
        """Write job.yaml with the usual settings, changed by ``settings``; None removes a key."""
        self.settings = {
            "name": self.name,
            "manifest": "products.csv",
            "destination": self.destination(),
            "source": {"allow_private_addresses": ["127.0.0.1"]},
            "retries": QUICK,
            "failure_budget": "100%",
            **settings,
        }
        kept = {name: value for name, value in self.settings.items() if value is not None}
        (self.folder / "job.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))

    def destination(self, **more: Any) -> dict[str, Any]:
        return {"uri": f"s3://{self.bucket}/{self.prefix}", "endpoint_url": self.cli.s3.endpoint_url, **more}

    def manifest(self, rows: Sequence[Mapping[str, Any]], name: str = "products.csv") -> None:
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def ferry(self, *arguments: str, env: Environment = {}, within_s: float = COMMAND_S) -> Ended:
        return self.cli.run(arguments, self.folder, env, within_s)

    def start(self, *arguments: str, env: Environment = {}) -> subprocess.Popen[str]:
        return self.cli.start(arguments, self.folder, env)

    def fork(self, *arguments: str, env: Environment = {}, first: str = "") -> Forked:
        self.forked.append(self.cli.fork(arguments, self.folder, env, first))
        return self.forked[-1]

    def client(self) -> S3Client:
        return self.cli.s3.client()

    def stored(self) -> dict[str, bytes]:
        """Returns the bucket's objects under the prefix: key (without it) to bytes."""
        client = self.client()
        return {
            key: client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()
            for key in sorted(self.stored_keys())
        }

    def stored_keys(self) -> set[str]:
        """Returns the keys under the prefix, without it."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return {item["Key"].removeprefix(self.prefix) for page in pages for item in page.get("Contents", [])}

    def written_at(self) -> dict[str, Any]:
        """Returns each key's time of the last write."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {
            item["Key"]: (item["LastModified"], item["ETag"]) for page in pages for item in page.get("Contents", [])
        }

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Returns the latest outcome of each row by its id, read without Ferry."""
        return {line["id"]: line for line in fold(self.state).values()}

    def files(self) -> dict[str, bytes]:
        """Returns every file of the state, by name."""
        return {str(p.relative_to(self.state)): p.read_bytes() for p in sorted(self.state.rglob("*")) if p.is_file()}


def fold(state: Path) -> dict[str, dict[str, Any]]:
    """Returns the latest outcome of each row by row_id, read with pyarrow alone. Also works during a run."""
    while True:
        try:
            return _fold(state)
        except FileNotFoundError:
            continue


def _fold(state: Path) -> dict[str, dict[str, Any]]:
    latest: dict[str, dict[str, Any]] = {}
    for folder in ("ledger", "outcomes"):
        for path in sorted((state / folder).glob("*.parquet")):
            found = path.stat()
            for line in _lines(path, found.st_ino, found.st_mtime_ns, found.st_size):
                known = latest.get(line["row_id"])
                if known is None or _order(line) > _order(known):
                    latest[line["row_id"]] = line
    return latest


@functools.lru_cache(1000)
def _lines(path: Path, *_: int) -> list[dict[str, Any]]:
    """Returns a file's lines. A test asks for those of a run many times a second, and its files do not change."""
    lines: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return lines


def _order(line: Mapping[str, Any]) -> tuple[Any, ...]:
    is_copy = line["status"] not in ("failed", "skipped")
    return line["run_no"], line["attempt"], is_copy, line["recorded_at"]


def serve(origin: Origin, count: int, folder: str = "images") -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """Add ``count`` JPEGs to the origin. Returns their rows (sku, url), and the expected objects."""
    rows, bodies = [], {}
    for number in range(count):
        name = f"{folder}/p{number:04d}.jpg"
        bodies[name] = make_image("jpeg", number, 40, 30)
        rows.append({"sku": f"{folder}-{number:04d}", "url": origin.add(f"/{name}", bodies[name])})
    return rows, bodies


def wait_for(what: str, test: Callable[[], Any], within_s: float = 90.0, every_s: float = 0.05) -> Any:
    """Returns the first true result of ``test``. Fails after ``within_s``.

    A costly test, such as a request or a command, is called more seldom, with pauses of up to half a second: the
    processor is for what is tested.
    """
    deadline = time.monotonic() + within_s
    while (began := time.monotonic()) < deadline:
        if answer := test():
            return answer
        time.sleep(max(every_s, min(4 * (time.monotonic() - began), 0.5)))
    pytest.fail(f"waited {within_s:.0f} s in vain for: {what}")


def processes_with(mark: str, *, servers: bool = False) -> list[str]:
    """Returns command lines of other live processes with ``mark`` in command line or environment.

    Local Prefect servers, which outlive the command, only with ``servers``.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if not servers and SERVER.encode() in command:
                continue
            if command and mark.encode() in command + b"\0" + (entry / "environ").read_bytes():
                found.append(f"{entry.name}: {command.replace(bytes(1), b' ').decode(errors='replace')}")
    return found
