"""Ferry as a wheel: what it installs, and that it runs where others have packages of the same names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from demo.origin import Origin
from tests.flows.project import ROOT, Cli, Project, serve

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
HOSTILE = "import pathlib; pathlib.Path({mark!r}).touch()\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves files beside its source."""
    source = tmp_path_factory.mktemp("source") / "ferry"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("flows", "tasks", "ferry", "demo"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = source.parent / "out"
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(source)]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def ferry(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in an environment with the wheel, and with the packages of this one; not with this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    (packages / "below.pth").write_text(sysconfig.get_path("purelib"))
    command = [*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    return folder / "bin" / "ferry"


def test_what_it_installs(wheel: Path) -> None:
    """The packages flows, tasks and ferry, with the templates of pages, and nothing else at the top: `demo` is a name
    that others have."""
    names = set(zipfile.ZipFile(wheel).namelist())
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "ferry").glob("*/templates/*")}
    assert templates
    assert templates <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"flows", "tasks", "ferry", "image_ferry-0.1.0.dist-info"}


@pytest.mark.slow
def test_it_runs_beside_packages_of_the_same_names(
    ferry: Path, project: Project, origin: Origin, cli: Cli, tmp_path: Path
) -> None:
    """With a Prefect server of its own, in a folder with packages `flows`, `tasks`, `ferry`, `demo` and modules of
    others' names: none of them is loaded."""
    mark = str(tmp_path / "loaded")
    for name in ("flows", "tasks", "ferry", "demo"):
        (project.folder / name).mkdir()
        (project.folder / name / "__init__.py").write_text(HOSTILE.format(mark=mark))
    for name in ("uvicorn", "prefect", "duckdb", "pyarrow"):
        (project.folder / f"{name}.py").write_text(HOSTILE.format(mark=mark))
    rows, bodies = serve(origin, 2)
    project.manifest(rows)
    home = tmp_path / "home"
    environment = {
        name: value for name, value in cli.environment.items() if not name.startswith(("PREFECT_", "PYTHONPATH"))
    }
    done = subprocess.run(
        [str(ferry), "run", "job.yaml"], cwd=project.folder, env={**environment, "HOME": str(home)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(project.stored()) == len(bodies)
    assert not Path(mark).exists()


@pytest.mark.slow
def test_the_demo_needs_a_checkout(ferry: Path, cli: Cli, tmp_path: Path) -> None:
    """It is said, with what to do."""
    environment = {name: value for name, value in cli.environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(ferry), "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, "needs a checkout" in done.stderr) == (2, True), done.stderr
