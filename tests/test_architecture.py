"""What may be imported where. import-linter holds the layers; these hold what happens at import time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported(code: str) -> set[str]:
    """The modules that a fresh interpreter has after ``code``."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_engine_imports_no_prefect() -> None:
    """The engine can be used, and tested, without Prefect."""
    assert "prefect" not in imported("import tasks.engine.chunk, tasks.engine.child, tasks.engine.verify")


def test_the_transfer_process_loads_no_duckdb() -> None:
    """Planning's libraries stay in the child process: their memory ends with it."""
    modules = imported("import tasks.engine.chunk, tasks.engine.child")
    assert "tasks.engine.planner" not in modules


@pytest.mark.parametrize("module", ["flows.cli", "flows.terminal", "flows.local", "flows.watch", "flows.server"])
def test_the_command_knows_its_server_before_prefect_is_imported(module: str) -> None:
    """Prefect reads its settings when it is imported: nothing of the command imports it too early."""
    assert "prefect" not in imported(f"import {module}")


def test_engine_modules_stay_small() -> None:
    """A module is one idea; past 400 lines it is probably two."""
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("flows", "tasks", "demo")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert set(long) <= {"demo/origin.py"}, long
