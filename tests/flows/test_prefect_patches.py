"""Each private or undocumented name of Prefect that Ferry uses exists and behaves as expected.

The facts come from a real run in a separate process, so that `make test-prefect` can check other versions.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from prefect import flow_engine
from prefect._internal.concurrency import services
from prefect.events.worker import EventsWorker
from prefect.runner import Runner
from prefect.workers.process import ProcessWorker

from ferry.core.errors import UserError
from tasks import prefect_patches
from tasks.reporting import prefect_logs
from tests.flows.project import ROOT, Cli

SCRIPT = """
import contextlib, json, logging, sys
from uuid import UUID
from prefect import flow, task, tags
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.runtime import task_run
from prefect.states import Pending
from tasks import prefect_patches as patches

seen = {"slots": [], "asked": [], "kept": {}, "tags": [], "ran": 0, "lines": []}
record = lambda r: seen["lines"].append([r.name, r.getMessage()]) or True
for name in (patches.FLOW_RUNS, patches.TASK_RUNS):
    logging.getLogger(name).addFilter(record)

class Memory(patches.OwnStorage):
    def kept(self, key):
        seen["asked"].append(key)
        return seen["kept"][key]
    def keep(self, key, content):
        value = json.loads(content)["result"]
        seen["kept"][key] = json.loads(value) if isinstance(value, str) else value

@contextlib.contextmanager
def hold(*given, **named):
    seen["slots"].append([[str(value) for value in given], sorted(named)])
    yield
    seen["slots"].append("ended")

@task(cache_key_fn=lambda _, p: f"key-{p['n']}", persist_result=True, retries=1, retry_delay_seconds=0)
def work(n):
    seen["ran"] += 1
    seen["tags"].append(sorted(task_run.tags))
    if seen["ran"] == 1:
        raise ValueError("once")
    return {"n": n}

@flow(name="patched")
def patched():
    with patches.without_tags(), patches.results_in(Memory()):
        first, again = work.submit(1), None
        first.wait()
        again = work.submit(1)
        again.wait()
        return [first.state.name, again.state.name, again.result()]

patches.hold_slots_with(hold)
with get_client(sync_client=True) as client:
    flow_id = client.create_flow(patched)
    deployment = client.create_deployment(
        flow_id=flow_id, name="patched", concurrency_limit=1, entrypoint="x.py:patched"
    )
    with tags("ferry"):
        run = client.create_flow_run_from_deployment(deployment, tags=["ferry"])
        client.set_flow_run_state(run.id, Pending())  # as a worker does, which takes the slot
        seen["result"] = run_flow(patched, flow_run=client.read_flow_run(run.id))
print("SEEN" + json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(cli: Cli) -> dict[str, Any]:
    """Returns the observations of a deployment's flow with a slot, run with all patches."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=cli.environment, capture_output=True, text=True, timeout=240, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("SEEN")), None)
    assert line is not None, done.stdout + done.stderr
    facts: dict[str, Any] = json.loads(line.removeprefix("SEEN"))
    return facts


def test_the_slot_is_held_by_what_ferry_puts_there(seen: dict[str, Any]) -> None:
    """The engine calls Ferry's function with the slot's lease and 300 s, and ends it with the flow."""
    (given, named), ended = seen["slots"]
    assert (len(given[0]), given[1], ended) == (36, "300", "ended")
    assert named == ["raise_on_lease_renewal_failure"]


def test_a_name_that_is_gone_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing name raises UserError, and is not set."""
    monkeypatch.delattr(flow_engine, prefect_patches._SLOT)
    with pytest.raises(UserError, match="has no `prefect.flow_engine.maintain_concurrency_lease`".replace(".", "[.]")):
        prefect_patches.hold_slots_with(lambda *_: None)  # type: ignore[arg-type]
    assert prefect_patches._SLOT not in vars(flow_engine)


@pytest.mark.slow
def test_results_are_kept_where_ferry_says(seen: dict[str, Any]) -> None:
    """The second task with a key is Cached, from the run's own storage."""
    assert seen["result"] == ["Completed", "Cached", {"n": 1}]
    assert seen["kept"] == {"key-1": {"n": 1}}
    assert "key-1" in seen["asked"]
    assert seen["ran"] == 2  # the first raised, and was retried


def test_tasks_have_no_tags(seen: dict[str, Any]) -> None:
    """Tasks do not inherit their flow's tag."""
    assert seen["tags"] == [[], []]


def test_the_log_says_what_is_looked_for(seen: dict[str, Any]) -> None:
    """Completed, cached and retried tasks are logged with the expected text and logger."""
    tasks = [text for name, text in seen["lines"] if name == prefect_patches.TASK_RUNS]
    assert any(text.startswith(prefect_patches.COMPLETED) for text in tasks), tasks
    assert any(text.startswith(prefect_patches.CACHED) for text in tasks), tasks
    assert sum(prefect_patches.RETRIED in text for text in tasks) == 1, tasks
    assert any(name == prefect_patches.FLOW_RUNS and text.startswith(prefect_patches.COMPLETED)
               for name, text in seen["lines"])  # fmt: skip


AWAY = """
import logging
lines = []
from tasks import prefect_patches as patches
for name in patches.CLIENTS:
    logging.getLogger(name).addFilter(lambda r: lines.append([r.name, r.getMessage()]) or True)
from prefect.events import emit_event
emit_event("ferry.test", resource={"prefect.resource.id": "x"})
from prefect.events.worker import EventsWorker
import time
for _ in range(600):
    if any(patches.UNREACHABLE in text or patches.NOT_SENT in text for _, text in lines):
        break
    time.sleep(0.1)
import json, os
print("SEEN" + json.dumps(lines), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_a_server_that_is_away_is_told_in_these_words(cli: Cli) -> None:
    """An unreachable server is logged with the expected text and logger."""
    environment = {**cli.environment, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    done = subprocess.run(
        [sys.executable, "-c", AWAY], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    lines = json.loads(done.stdout.partition("SEEN")[2] or "[]")
    words = (prefect_patches.UNREACHABLE, prefect_patches.NOT_SENT)
    assert any(word in text for _, text in lines for word in words), (lines, done.stderr)


def test_the_logger_of_the_last_events() -> None:
    """The service that sends events logs under its class's name; its warnings are not shown, its errors are."""
    assert EventsWorker.__name__ == prefect_patches.LAST_EVENTS
    assert 'self._logger = logging.getLogger(f"{type(self).__name__}")' in inspect.getsource(services)
    (shown,) = prefect_logs._FILTERS[prefect_patches.LAST_EVENTS]
    assert callable(shown)
    records = [logging.LogRecord("x", level, "", 0, "", None, None) for level in (logging.WARNING, logging.ERROR)]
    assert [shown(record) for record in records] == [False, True]


def test_the_folders_of_workers() -> None:
    """Prefect's folders for fetched code match the patterns."""
    assert 'TemporaryDirectory(suffix="prefect")' in inspect.getsource(sys.modules[ProcessWorker.__module__])
    with tempfile.TemporaryDirectory(suffix="prefect") as made:
        assert prefect_patches.WORKER_FOLDER.fullmatch(Path(made).name)
    assert prefect_patches.RUNNER_FOLDER.search(Runner()._tmp_dir.as_posix())


def test_private_names_stand_in_one_module() -> None:
    """No other module imports Prefect's command line or a private name."""
    modules = r"^\s*(?:from|import) prefect(?:\.cli\b|[\w.]*\._)"
    names = r"^\s*from prefect[\w.]* import .*\b_\w"
    private = re.compile(f"{modules}|{names}", re.MULTILINE)
    for path in [*(ROOT / "flows").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        assert not private.search(path.read_text()), path
