"""What may be imported where. import-linter holds the layers; these hold what happens at import time."""

from __future__ import annotations

import ast
import importlib
import re
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


PACKAGES = sorted(path.parent.name for path in (ROOT / "ferry").glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_library_imports_no_prefect(package: str) -> None:
    """Every package of ferry can be used, and tested, without Prefect; and it loads no DuckDB and no pandas: planning
    has those, in a child process whose memory ends with it."""
    assert not {"prefect", "duckdb", "pandas"} & imported(f"import ferry.{package}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_offers(package: str) -> None:
    """A docstring and a complete `__all__`; no name is that of a module too, which would hide the module."""
    module = importlib.import_module(f"ferry.{package}")
    assert module.__doc__
    offered = {name for name in vars(module) if not name.startswith("_")} - {
        path.stem for path in (ROOT / "ferry" / package).iterdir()
    }
    assert set(module.__all__) == offered


def test_the_page_of_the_architecture() -> None:
    """Each package and module that docs/explanation/architecture.md names exists, and no package is missing."""
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:ferry|tasks|flows)(?:\.\w+)+)`", page))
    missing = [name for name in sorted(named) if not list(ROOT.glob(f"{name.replace('.', '/')}*.py"))]
    assert not [name for name in missing if not (ROOT / name.replace(".", "/") / "__init__.py").is_file()]
    picture = page.split("```")[1]
    assert sorted(set(re.findall(r"\b[a-z]+\b", " ".join(line[:28] for line in picture.splitlines())))) == PACKAGES
    walked = {name.split(".")[1] for name in named if name.startswith("ferry.")}
    assert walked == set(PACKAGES)


@pytest.mark.parametrize(
    "module",
    [
        "flows.cli.main",
        "flows.cli.terminal",
        "flows.cli.local_run",
        "flows.running.reporter",
        "flows.server.local",
        "tasks.run",  # what `ferry run` prepares before
    ],
)
def test_the_command_knows_its_server_before_prefect_is_imported(module: str) -> None:
    """Prefect reads its settings when it is imported: nothing of the command imports it too early."""
    assert "prefect" not in imported(f"import {module}")


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("flows.cli.main", "prefect pydantic duckdb pyarrow urllib3 ferry.job ferry.storage flows.server.shared"),
        ("flows.cli.status", "prefect numpy pandas urllib3 ferry.planning ferry.transfer tasks.run"),
        ("flows.cli.failures", "prefect numpy pandas urllib3 ferry.planning ferry.transfer tasks.run"),
    ],
)
def test_what_a_quick_command_does_not_load(module: str, unneeded: str) -> None:
    """`--help`, `status` and `failures` take half a second of CPU time at most (`python -m benchmarks.commands`)."""
    assert not set(unneeded.split()) & imported(f"import {module}")


def test_modules_stay_small() -> None:
    """A module is one idea; past 400 lines, its imports apart, it is probably two."""
    long = {}
    for folder in ("flows", "tasks", "ferry", "demo"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            imports = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
            lines = len(text.splitlines()) - sum((node.end_lineno or 0) - node.lineno + 1 for node in imports)
            if lines > 400:
                long[str(path.relative_to(ROOT))] = lines
    assert set(long) <= {"demo/origin.py"}, long
