"""The tour of `make demo`: a complete migration on local servers, from the first run to the verification.

It runs the `ferry` commands that a user would type, each in its own process, against SeaweedFS, a fault-injecting HTTP
origin and one Prefect server.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from demo.library import Library, build_library
from demo.origin import Origin
from demo.prefect_api import ask
from demo.s3 import S3Server
from flows.server.home import quiet_environment
from flows.server.local import LocalServer

BUCKET, PREFIX = "new-bucket", "products/"
JOB = "job.yaml"
MEND = 12
STOP_S = 20.0


class Failed(Exception):
    """A result differs from what the tour announces."""


class Tour:
    """The tour's folder, output and environment, with helpers that run and print."""

    def __init__(self, folder: Path, out: Console) -> None:
        self.folder = folder
        self.out = out
        self._children_print_to = sys.stderr if out.stderr else None  # with --json, standard output is one document
        self.environment: dict[str, str] = {}
        self.prefect_url = ""

    def say(self, text: str) -> None:
        """Print the heading of a step."""
        self.out.print(f"\n[bold]{text}[/bold]")

    def ferry(self, *arguments: str, expect: int = 0) -> None:
        """Run a `ferry` command in this terminal. Raises Failed for another exit code than ``expect``."""
        self.out.print(f"[dim]$ ferry {shlex.join(arguments)}[/dim]")
        command = [sys.executable, "-m", "flows", *arguments]
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=self._children_print_to)
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the command also received the Ctrl-C, and ends by itself
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
        if code != expect:
            raise Failed(f"`ferry {shlex.join(arguments)}` ended with exit code {code}, not {expect}")

    def api(self, path: str, body: dict[str, Any]) -> Any:
        """Returns the answer of the Prefect server's API."""
        return ask(self.prefect_url, path, body)

    def recorded(self, right: Callable[[Counter[str], Counter[str]], bool]) -> list[Counter[str]]:
        """Returns the chunk states of two runs, once ``right`` accepts them or after 30 s; the server records late."""
        for _ in range(60):
            if right(*(states := self.chunk_states())):
                break
            time.sleep(0.5)
        return states

    def chunk_states(self) -> list[Counter[str]]:
        """Returns the number of chunk tasks by state, for each run of `migrate`, oldest first."""
        runs = self.api("flow_runs/filter", {"sort": "START_TIME_ASC", "flows": {"name": {"any_": ["migrate"]}}})
        return [Counter(task["state_name"] for task in self._tasks(run["id"])) for run in runs]

    def _tasks(self, flow_run_id: str) -> Iterator[dict[str, Any]]:
        offset = 0
        while page := self.api(
            "task_runs/filter",
            {
                "flow_runs": {"id": {"any_": [flow_run_id]}},
                "task_runs": {"name": {"like_": "chunk-"}},
                "offset": offset,
                "limit": 200,
            },
        ):
            yield from page
            offset += len(page)


def write_job(folder: Path, s3: S3Server) -> None:
    """Write the tour's job file."""
    job = {
        "name": "demo",
        "manifest": "products.csv",
        "destination": {"uri": f"s3://{BUCKET}/{PREFIX}", "endpoint_url": s3.endpoint_url},
        "source": {"allow_private_addresses": ["127.0.0.1"]},
        "failure_budget": "5%",
        "chunk_rows": 100,
        "retries": {"backoff_s": 0.2, "max_backoff_s": 5, "chunk_delay_s": 1, "passes": 0},
    }
    text = "# The demo's job: local servers, small chunks, short retries, a budget for the many broken images.\n"
    (folder / JOB).write_text(text + yaml.safe_dump(job, sort_keys=False))


def prove(s3: S3Server, expected: dict[str, bytes]) -> None:
    """Compare the bucket's keys and SHA-256 digests with the expected ones, by boto3. Raises Failed if they differ."""
    client = s3.client()
    keys: set[str] = set()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=PREFIX):
        keys |= {item["Key"].removeprefix(PREFIX) for item in page.get("Contents", [])}
    if keys != set(expected):
        raise Failed(f"{len(set(expected) - keys)} objects are missing and {len(keys - set(expected))} are unexpected")
    for key, body in expected.items():
        stored = client.get_object(Bucket=BUCKET, Key=PREFIX + key)["Body"].read()
        if hashlib.sha256(stored).digest() != hashlib.sha256(body).digest():
            raise Failed(f"{key} differs from the origin's object")


def as_promised(first: Counter[str], second: Counter[str]) -> str:
    """Returns what is wrong with the second run's chunks, or ""."""
    if second["Cached"] == sum(first.values()) and sum(second.values()) == sum(first.values()) + 1:
        return ""
    return f"the second run's chunks are not the first run's, Cached, and one more: {dict(second)}"


def walk(tour: Tour, s3: S3Server, library: Library) -> None:
    """Run the steps: copy, copy again, repair and retry, verify."""
    tour.say("1. Copy everything. 63 rows have a fault: broken links, error pages, truncated bodies, ...")
    tour.out.print("Three times the origin answers 429 with Retry-After: 1, and Ferry waits.")
    tour.ferry("run", JOB)

    tour.say("2. Run it again: rows that are done are not processed twice.")
    tour.ferry("run", JOB)
    first, second = tour.recorded(lambda first, second: as_promised(first, second) == "")
    new = sum(second.values()) - sum(first.values())
    tour.out.print(
        f"Prefect's records: {sum(first.values())} chunks in the first run. In the second, {second['Cached']} are "
        f"Cached, and {new} small one retried the rows whose origin still fails."
    )
    if wrong := as_promised(first, second):
        raise Failed(wrong)

    mended = library.mend(MEND)
    tour.say(f"3. {len(mended)} of the broken images are repaired at the origin. Retry only the failed rows.")
    tour.ferry("run", JOB, "--retry-failed")

    tour.say("4. Verify: read the destination back.")
    tour.ferry("verify", JOB)
    prove(s3, {**library.expected, **mended})
    tour.out.print(
        f"Checked without Ferry (boto3, SHA-256): s3://{BUCKET}/{PREFIX} has exactly the {len(library.expected):,} "
        f"images of the first run and the {len(mended)} repaired ones, byte for byte, and nothing else."
    )


def tour(folder: Path, *, keep: bool = False, as_json: bool = False) -> int:
    """Run the tour in ``folder``. Returns 0 if every result was as announced, 1 if not, 130 after a Ctrl-C."""
    out = Console(stderr=as_json, highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the servers, as a Ctrl-C does
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / ".gitignore").write_text("*\n")
    it = Tour(folder, out)
    started = time.monotonic()
    outcome = {"ok": False, "seconds": 0.0, "error": ""}
    out.print("Ferry's demo: 2,000 good images and 63 faulty rows, from a local HTTP origin to a local S3 server.")
    out.print(
        "Its job allows 5% failures (`failure_budget`), uses small chunks (`chunk_rows: 100`) and retries quickly."
    )
    code = 1
    try:
        with LocalServer(folder / ".ferry" / "prefect") as prefect, S3Server(folder / "s3") as s3, Origin() as origin:
            s3.make_bucket(BUCKET)
            library = build_library(origin)
            library.write_csv(folder / "products.csv")
            write_job(folder, s3)
            it.prefect_url = prefect.url
            it.environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_"))},
                **quiet_environment(prefect.home),
                "PREFECT_API_URL": f"{prefect.url}/api",
                "AWS_ACCESS_KEY_ID": s3.access_key,
                "AWS_SECRET_ACCESS_KEY": s3.secret_key,
                "AWS_EC2_METADATA_DISABLED": "true",
                "PYTHONPATH": str(Path(__file__).parents[1]),
            }
            walk(it, s3, library)
            outcome["ok"], code = True, 0
            if keep:
                out.print(f"\nThe servers run until Ctrl-C. Prefect UI: {prefect.url}")
                signal.pause()
    except Failed as error:
        outcome["error"] = str(error)
        out.print(f"[red]the demo failed:[/red] {error}")
    except KeyboardInterrupt:
        out.print("\ninterrupted; the servers are stopped")
        code = 0 if outcome["ok"] else 130
    outcome["seconds"] = round(time.monotonic() - started, 1)
    if code == 0:
        out.print(f"\nFinished in {outcome['seconds']:.0f} s. The servers are stopped; their files remain:")
        here = os.path.relpath(folder)
        for command, what in (
            (f"ferry failures {here}/{JOB}", "the failed rows with their reasons"),
            (f"ferry status {here}/{JOB}", "the outcomes of all rows"),
            (f"ferry ui {here}/{JOB}", "the runs in the Prefect UI"),
            (f"ls {here}/.ferry/demo", "the state: plan, chunks, ledger, reports"),
        ):
            out.print(f"  {command:<34}{what}")
    if as_json:
        print(json.dumps(outcome))
    return code
