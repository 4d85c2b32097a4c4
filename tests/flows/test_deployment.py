"""The deployment migrate/prod as an operator uses it: server, work pool, `prefect deploy --all`, worker, runs."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.library import Library, build_library
from demo.origin import Origin
from demo.s3 import S3Server
from flows.server.home import quiet_environment
from flows.server.local import LocalServer
from tests.flows.project import UNDER_PARENT, fold, serve, wait_for
from tests.flows.site import Site, needs_postgresql

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # of which a minute is setting up, on a free machine

ROOT = Path(__file__).parents[2]
COMMAND_S = 60.0
RUN_S = 240
RECORDED_S = 30.0
PREFIX = "products/"
CHUNK_ROWS = 40
TOKEN = "token-" + secrets.token_hex(16)  # what the job refers to as env:OLD_TOKEN


@dataclass(frozen=True, slots=True)
class Ran:
    """The API's records of one run, and its number of requests to the origin."""

    code: int
    output: str
    flow_run: dict[str, Any]
    chunks: list[dict[str, Any]]
    requests: int

    @property
    def state(self) -> tuple[str, str]:
        return self.flow_run["state_type"], self.flow_run["state"]["message"]


class Prefect:
    """The `prefect` command against one server, and that server's API."""

    def __init__(self, server: LocalServer | Site, extra: dict[str, str]) -> None:
        self.url = f"{server.url}/api"
        self.transcript: list[str] = []
        user_and_password = extra.get("PREFECT_API_AUTH_STRING", "").encode()
        self._headers = {"Authorization": f"Basic {base64.b64encode(user_and_password).decode()}"}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_"))},
            **quiet_environment(server.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **extra,
        }

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", UNDER_PARENT, "prefect", *arguments], cwd=ROOT, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def run(self, *arguments: str, within_s: float = COMMAND_S) -> tuple[int, str]:
        """Returns a command's exit code and output. Kills a command that takes too long, for example at a prompt."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments], cwd=ROOT, env=self.environment, timeout=within_s,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        self.transcript.append(f"$ prefect {shlex.join(arguments)}\n{done.stdout}")
        return done.returncode, done.stdout

    def must(self, *arguments: str) -> str:
        code, output = self.run(*arguments)
        assert code == 0, f"prefect {' '.join(arguments)}: exit {code}\n{output}"
        return output

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(f"{self.url}/{path}", headers=self._headers))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", **self._headers}
        return self._ask(urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), headers))

    @staticmethod
    def _ask(request: urllib.request.Request) -> Any:
        """Returns the answer. Tries again at 503, which a server sends while its database is busy."""
        deadline = time.monotonic() + COMMAND_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=4 * COMMAND_S) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def chunk_runs(self, flow_run_id: str, expected: int) -> list[dict[str, Any]]:
        """Returns the run's chunk tasks, once the server has recorded as many as expected."""
        deadline = time.monotonic() + RECORDED_S
        ask = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "task_runs": {"name": {"like_": "chunk-"}}}
        while True:
            runs: list[dict[str, Any]] = self.post("task_runs/filter", ask)
            final = [run for run in runs if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
            if len(final) == len(runs) >= expected or time.monotonic() > deadline:
                return runs
            time.sleep(0.2)

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        """Returns a run once it has ended. Fails after RUN_S."""
        deadline = time.monotonic() + RUN_S
        while time.monotonic() < deadline:
            run: dict[str, Any] = self.get(f"flow_runs/{flow_run_id}")
            if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return run
            time.sleep(0.2)
        raise AssertionError(f"the run {flow_run_id} did not end within {RUN_S} s: {run['state']}")


@dataclass(slots=True)
class World:
    """All servers and data that are set up once, and their runs."""

    prefect: Prefect
    site: Site
    auth: str
    s3: S3Server
    bucket: str
    library: Library
    rows: list[dict[str, str]]
    failures: dict[str, str]
    state: Path
    runs: list[Ran]
    stopped: Stopped
    lost: dict[str, Any]
    lost_destination: Path
    project: tuple[tuple[set[str], bytes], tuple[set[str], bytes]]

    @property
    def artifacts(self) -> dict[str, dict[str, Any]]:
        return {a["key"]: a for a in self.prefect.post("artifacts/latest/filter", {})}


def project() -> tuple[set[str], bytes]:
    """Returns the names at the top of the project, and the file that `prefect deploy` could rewrite."""
    made_meanwhile = ".venv"  # by other targets of the Makefile
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(made_meanwhile)}
    return names, (ROOT / "prefect.yaml").read_bytes()


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run during which PostgreSQL was restarted, the server killed, and the worker stopped and started."""

    recorded: set[str]  # its rows that were recorded before anything happened
    after: set[str]  # and when the worker had ended
    stop_s: float
    waiting: dict[str, Any]  # the run while its worker was away
    ended: dict[str, Any]
    requests: Counter[str]  # that it made after that
    bodies: dict[str, bytes]
    stored: dict[str, bytes]


@pytest.fixture(scope="module")
def world(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server, the deployment, a worker, and three runs of one job: first, again, and with too small a budget."""
    needs_postgresql()
    folder = tmp_path_factory.mktemp("deployment")
    bucket = f"test-{secrets.token_hex(6)}"
    s3.make_bucket(bucket)
    before = project()
    given = {
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        "OLD_TOKEN": TOKEN,
    }
    auth = f"operator:{secrets.token_hex(16)}"
    with Origin() as origin, Site(folder, auth, given) as site:
        prefect = Prefect(site, {"PREFECT_API_AUTH_STRING": auth})
        library = build_library(origin, count=60)
        again = set(library.retryable)  # a rerun asks for these once more; this test is of what is settled
        rows = [row for row in library.rows if row["url"] not in again]
        failures = {url: name for url, name in library.expected_failures.items() if url not in again}
        Library(origin, rows).write_csv(folder / "products.csv")
        job: dict[str, Any] = {
            "name": "product-images",
            "manifest": str(folder / "products.csv"),
            "destination": {"uri": f"s3://{bucket}/{PREFIX}", "endpoint_url": s3.endpoint_url},
            "source": {
                "allow_private_addresses": ["127.0.0.1"],
                "headers": {"X-Token": "env:OLD_TOKEN"},
                "headers_for": ["http://*"],
            },
            "state": str(folder / "state"),
            "chunk_rows": CHUNK_ROWS,
            "retries": {"backoff_s": 0.1, "max_backoff_s": 5, "chunk_delay_s": 0.5},
            "failure_budget": len(failures),
        }
        prefect.must("deploy", "--all")
        lost = start_lost(prefect, folder)
        runs = [ran(prefect, origin, a_job, folder / "state") for a_job in (job, job, less(job))]
        yield World(
            prefect, site, auth, s3, bucket, library, rows, failures, folder / "state", runs,
            interrupted(site, prefect, origin, s3, bucket, job, folder), prefect.flow_run(lost), folder / "lost",
            (before, project()),
        )  # fmt: skip


def start_lost(prefect: Prefect, folder: Path) -> str:
    """Submit a job with the default state to a deployment whose code the worker deletes. Returns the run's ID."""
    (folder / "images").mkdir()
    (folder / "images" / "one.jpg").write_bytes(make_image("jpeg", 1))
    destination = {"uri": f"file://{folder}/lost/"}
    job = {"name": "lost", "manifest": f"file://{folder}/images/", "destination": destination}
    prod = prefect.get("deployments/name/migrate/prod")
    elsewhere = {
        "name": "elsewhere", "flow_id": prod["flow_id"], "entrypoint": prod["entrypoint"], "work_pool_name": "ferry",
        "parameter_openapi_schema": prod["parameter_openapi_schema"],
        "pull_steps": [  # what git_clone does, without git: the code in the worker's folder for this run
            {"prefect.deployments.steps.run_shell_script": {"script": f"cp -r {ROOT}/flows {ROOT}/tasks ."}},
            {"prefect.deployments.steps.set_working_directory": {"directory": "."}},
        ],
    }  # fmt: skip
    return submit(prefect, prefect.post("deployments/", elsewhere)["id"], job)


def submit(prefect: Prefect, deployment: str, job: dict[str, Any]) -> str:
    asked = {"parameters": {"job": job}, "state": {"type": "SCHEDULED"}}
    return str(prefect.post(f"deployments/{deployment}/create_flow_run", asked)["id"])


def interrupted(
    site: Site, prefect: Prefect, origin: Origin, s3: S3Server, bucket: str, like: dict[str, Any], folder: Path
) -> Stopped:
    """Restart database and server during a run, stop and start its worker, and wait for the run's end."""
    listed, bodies = serve(origin, 40, "interrupted")
    Library(origin, listed).write_csv(folder / "interrupted.csv")
    destination = {**like["destination"], "uri": f"s3://{bucket}/interrupted/"}
    state = folder / "interrupted"
    job = {
        **like, "name": "interrupted", "manifest": str(folder / "interrupted.csv"), "destination": destination,
        "state": str(state), "chunk_rows": 10, "concurrency": 2, "failure_budget": 0,
    }  # fmt: skip
    prod = prefect.get("deployments/name/migrate/prod")["id"]
    origin.latency_s = 0.3
    first = submit(prefect, prod, job)
    recorded = wait_for("recorded rows", lambda: copied(state), 60)
    origin.latency_s = 4.0  # it is not to end meanwhile
    site.database.stop()
    site.database.start()
    site.server.kill()
    site.server.start()
    site.ready()
    began = time.monotonic()
    site.worker.stop()
    stop_s = time.monotonic() - began
    after, before = copied(state), Counter(origin.requests)
    waiting = prefect.get(f"flow_runs/{first}")
    origin.latency_s = 0.0
    site.worker.start()
    ended = prefect.flow_run(first)
    stored = objects(s3, bucket, "interrupted/")
    return Stopped(recorded, after, stop_s, waiting, ended, Counter(origin.requests) - before, bodies, stored)


def objects(s3: S3Server, bucket: str, prefix: str = "") -> dict[str, bytes]:
    """Returns the bucket's objects under a prefix: key without it to bytes."""
    client = s3.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {key.removeprefix(prefix): client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def copied(state: Path) -> set[str]:
    """Returns the keys that the ledger has as copied."""
    return {line["key"] for line in fold(state).values() if line["status"] == "copied"} if state.exists() else set()


def less(job: dict[str, Any]) -> dict[str, Any]:
    return {**job, "failure_budget": job["failure_budget"] - 1}


def ran(prefect: Prefect, origin: Origin, job: dict[str, Any], state: Path) -> Ran:
    """Run `prefect deployment run migrate/prod --watch` to its end, until its tasks are recorded."""
    requests = origin.total
    code, output = prefect.run(
        "deployment", "run", "migrate/prod", "--watch", "--watch-timeout", str(RUN_S), "-p", f"job={json.dumps(job)}",
        within_s=RUN_S + COMMAND_S,
    )  # fmt: skip
    found = re.search(r"UUID: ([0-9a-f-]{36})", output)
    assert found, output
    flow_run = prefect.flow_run(found[1])
    chunks = prefect.chunk_runs(found[1], len(list((state / "chunks").glob("*.parquet"))))
    return Ran(code, output, flow_run, chunks, origin.total - requests)


def names(chunks: Sequence[dict[str, Any]]) -> Counter[str]:
    return Counter(chunk["state_name"] for chunk in chunks)


def in_all(world: World, budget: int) -> str:
    """Returns the end of the message that every run of the job must have."""
    copied, failed = len(world.library.expected), len(world.failures)
    return f"total: {copied} of {len(world.rows)} stored, {failed} failed (budget {budget})"


def test_the_first_run_moves_everything(world: World) -> None:
    """The destination has exactly the good objects, byte for byte, and the run is Completed with its counts."""
    first = world.runs[0]
    assert first.code == 0, first.output
    copied, skipped, failed = len(world.library.expected), world.library.duplicates, len(world.failures)
    this_run = f"Completed. This run: {copied} copied, {skipped} skipped, {failed} failed"
    assert first.state == ("COMPLETED", f"{this_run}; {in_all(world, failed)}")
    assert objects(world.s3, world.bucket, PREFIX) == world.library.expected
    assert set(objects(world.s3, world.bucket)) == {PREFIX + key for key in world.library.expected} | {
        f"interrupted/{key}" for key in world.stopped.bodies
    }


def test_the_second_run_is_cached(world: World) -> None:
    """A rerun is Completed, with every chunk Cached and no request to the origin."""
    first, second = world.runs[0], world.runs[1]
    assert len(first.chunks) > 1
    assert all(re.fullmatch(r"Completed|\d+ rows? failed", name) for name in names(first.chunks))
    assert {chunk["state_type"] for chunk in first.chunks} == {"COMPLETED"}
    assert names(second.chunks) == {"Cached": len(first.chunks)}
    assert {chunk["name"] for chunk in second.chunks} == {chunk["name"] for chunk in first.chunks}
    assert (first.requests > 0, second.requests) == (True, 0)
    assert second.code == 0, second.output
    assert second.state == ("COMPLETED", f"Completed. This run: nothing to do; {in_all(world, len(world.failures))}")


def test_too_many_failures_fail_the_run(world: World) -> None:
    """One failure over the budget makes the run Failed, with its counts, and `--watch` exits 1."""
    third = world.runs[2]
    assert third.code == 1, third.output
    allowed = len(world.failures) - 1
    why = f"Failed: {allowed + 1} rows failed, more than the {allowed} that failure_budget allows"
    assert third.state == ("FAILED", f"{why}. This run: nothing to do; {in_all(world, allowed)}")


def test_what_the_ui_lists(world: World) -> None:
    """Runs and tasks have readable names, and runs have their deployment's tag and work pool."""
    for run in world.runs:
        assert re.fullmatch(r"product-images #\d+", run.flow_run["name"])
        assert run.flow_run["tags"] == ["ferry", "full", "product-images"]
        assert run.flow_run["work_pool_name"] == "ferry"
        for chunk in run.chunks:
            assert re.fullmatch(r"chunk-\d+-of-\d+-[0-9a-f]{12}", chunk["name"])
            assert chunk["tags"] == []  # a tagged task asks the server for leave before it starts


def test_the_artifacts(world: World) -> None:
    """The UI shows each run's summary as Markdown and its failures as a table."""
    summary, failures = world.artifacts["product-images-summary"], world.artifacts["product-images-failures"]
    assert summary["type"] == "markdown"
    assert in_all(world, len(world.failures) - 1) in summary["data"].replace("\\", "")
    assert summary["flow_run_id"] == world.runs[-1].flow_run["id"]
    assert failures["type"] == "table"
    listed = Counter(line["error_class"].replace("\\", "") for line in json.loads(failures["data"]))
    assert listed == Counter(world.failures.values())


def test_the_deployment(world: World) -> None:
    """The deployment has prefect.yaml's description, tag and limit of one run, no schedule and no local path."""
    made = world.prefect.get("deployments/name/migrate/prod")
    assert made["description"]
    assert made["tags"] == ["ferry"]
    assert made["global_concurrency_limit"]["limit"] == 1
    assert made["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert made["schedules"] == []
    assert set(made["parameters"]["job"]) == {"name", "manifest", "destination"}
    assert str(ROOT) not in json.dumps(made)
    assert str(ROOT) not in (ROOT / "prefect.yaml").read_text()


def test_the_form(world: World) -> None:
    """Each setting of the job has a description in the UI's form."""
    schema = world.prefect.get("deployments/name/migrate/prod")["parameter_openapi_schema"]
    assert set(schema["properties"]) == {"job", "retry_failed", "limit", "sample", "wait"}
    for model in schema["definitions"].values():
        for name, setting in model.get("properties", {}).items():
            target = schema["definitions"].get(setting.get("$ref", "").rpartition("/")[2], {})
            assert setting.get("description") or target.get("description"), f"{model['title']}.{name}"


def test_no_secret_reaches_the_server(world: World) -> None:
    """Credentials, a header's value and signatures are in no file of the server and no worker log."""
    assert any(headers.get("x-token") == TOKEN for headers in world.library.origin.last_headers.values())
    signatures = {found[1] for row in world.rows if (found := re.search(r"Signature=(\w+)", row["url"]))}
    assert signatures
    hidden = [world.s3.secret_key, world.s3.access_key, TOKEN, world.auth, *signatures]
    assert "env:OLD_TOKEN" in json.dumps(world.runs[0].flow_run["parameters"])
    records = world.site.database.dump()
    assert "env:OLD_TOKEN" in records
    paths = [*world.site.home.rglob("*"), *world.site.journal]
    files = {str(path): path.read_bytes() for path in paths if path.is_file()}
    for name, content in {"PostgreSQL": records.encode(), **files}.items():
        assert [text for text in hidden if text.encode() in content] == [], name


def test_the_records_are_in_postgresql(world: World) -> None:
    """Every run is in PostgreSQL, and no SQLite database exists."""
    rows = world.site.database.query("SELECT id, state_type FROM flow_run")
    runs = [ran.flow_run for ran in world.runs] + [world.stopped.ended, world.lost]
    assert {tuple(row) for row in rows} == {(run["id"], run["state_type"]) for run in runs}
    assert not [path for home in world.site.homes for path in home.rglob("*.db")]


def test_restarts_of_database_and_server_and_a_stopped_worker(world: World) -> None:
    """A run survives restarts of database and server, and a new worker resumes it after its worker stops."""
    stopped = world.stopped
    assert stopped.stop_s < float(world.site.worker.service["TimeoutStopSec"][-1])
    assert stopped.waiting["state"]["name"] == "AwaitingRetry", stopped.waiting["state"]
    assert stopped.recorded < stopped.after < set(stopped.bodies)
    assert (stopped.ended["state_type"], stopped.ended["run_count"]) == ("COMPLETED", 2), stopped.ended["state"]
    assert stopped.stored == stopped.bodies
    again = {key for key in stopped.after if stopped.requests[f"/{key}"]}
    assert again == set(), "recorded before, and fetched again"


def test_nothing_is_written_into_the_project(world: World) -> None:
    """Deploying and running from the project's root adds no file, and does not change prefect.yaml."""
    before, after = world.project
    assert after == before


def test_a_state_that_the_worker_would_delete_is_refused(world: World) -> None:
    """A run with its state in the worker's folder is Failed before the transfer, with the fix."""
    assert world.lost["state_type"] == "FAILED"
    message = world.lost["state"]["message"]
    assert message.startswith("UserError: the state `")
    assert "deletes when this run ends" in message
    assert "s3://bucket/prefix" in message
    assert not world.lost_destination.exists()


def test_what_the_readme_shows(world: World) -> None:
    """The commands print every line of the transcript in deployments/systemd/README.md, in order."""
    page = (ROOT / "deployments" / "systemd" / "README.md").read_text()
    transcript = re.search(r"<!-- transcript.*?```\n(.*?)```", page, re.DOTALL)
    assert transcript is not None
    asked = "SELECT name, state_type FROM flow_run ORDER BY created"
    rows = ["|".join(row) for row in world.site.database.query(asked)]
    psql = [f"$ psql --no-align --tuples-only prefect -c '{asked}'", *rows]
    printed = masked("\n".join([*world.prefect.transcript, *psql]))
    lines = iter(printed)
    for wanted in masked(transcript[1].replace("[...]\n", "")):
        assert wanted in lines, f"not printed, or not in this place: {wanted}\n\n" + "\n".join(printed)


def masked(text: str) -> list[str]:
    """Returns the lines without values that vary: paths, ports, IDs, names and times."""
    for what, mask in (
        (r"job=\{.*?\}'", "job=JOB'"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S*( UTC)?", "TIME"),
        (r"flow run '[a-z]+(-[a-z]+)+'", "flow run 'NAME'"),
        (r"(?m)^(\S) +\S+ +[0-9a-f]{12} ", r"\1 TIME ID "),
    ):
        text = re.sub(what, mask, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]
