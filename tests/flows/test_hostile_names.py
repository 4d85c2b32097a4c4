"""Lists that write files which programs execute or read as settings: 30 names, against each place of a directory."""

from __future__ import annotations

import csv
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.origin import Origin
from tasks.engine.errors import UserError
from tasks.engine.job import Job
from tasks.own_files import refuse_own_files
from tests.flows.project import ROOT, TRACEBACK, Project

MODULES = (
    "ctypes", "uvicorn", "json", "gc", "runpy", "yaml", "sqlite3", "prefect", "pydantic", "logging", "sitecustomize",
    "usercustomize", "conftest", "flows/__init__", "flows/gate", "tasks/__init__", "tasks/helper", "tasks/engine/child",
)  # fmt: skip
SETTINGS = {
    "prefect.toml": '[logging]\nconfig_path = "logging.yml"\n[api]\nurl = "http://127.0.0.1:9/api"\n',
    "pyproject.toml": '[tool.prefect.logging]\nconfig_path = "logging.yml"\n',
    ".env": "PREFECT_LOGGING_SETTINGS_PATH=logging.yml\nPREFECT_PROFILES_PATH=profiles.toml\n",
    "profiles.toml": 'active = "evil"\n[profiles.evil]\nPREFECT_LOGGING_SETTINGS_PATH = "logging.yml"\n',
    ".prefect/profiles.toml": 'active = "evil"\n[profiles.evil]\nPREFECT_LOGGING_SETTINGS_PATH = "logging.yml"\n',
    ".ferry/prefect/profiles.toml": 'active = "evil"\n[profiles.evil]\nPREFECT_LOGGING_LEVEL = "DEBUG"\n',
    "prefect.yaml": "name: evil\ndeployments: []\n",
    ".git/hooks/post-checkout": "#!/bin/sh\ntouch {canary}\n",
    ".git/config": "[core]\n\tfsmonitor = touch {canary}\n",
    ".bashrc": "touch {canary}\n",
    ".profile": "touch {canary}\n",
    "crontab": "* * * * * touch {canary}\n",
    "evil.pth": "import os; open({canary!r}, 'a').write('pth')\n",
    "list.csv": "url\nhttp://127.0.0.1:9/evil.jpg\n",
    "logging.yml": """version: 1
formatters: {{evil: {{"()": subprocess.getoutput, cmd: "touch {canary}-logging"}}}}
handlers: {{}}
""",
}


def hostile(canary: Path) -> dict[str, bytes]:
    """Key to body; each leaves the canary where it is executed."""
    code = f"open({str(canary)!r}, 'a').write(__name__ + chr(10))\n"
    found = {f"{name}.py": code.encode() for name in MODULES}
    return found | {name: text.format(canary=str(canary)).encode() for name, text in SETTINGS.items()}


def job_for(destination: Path, manifest: Path) -> Job:
    return Job.model_validate({"name": "j", "manifest": str(manifest), "destination": f"file://{destination}/"})


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where things lie that a list must not replace; the working directory is one of them."""
    found = {name: tmp_path / name for name in ("cwd", "job", "list", "prefect", "home", "temporary", "elsewhere")}
    for path in found.values():
        path.mkdir()
    monkeypatch.chdir(found["cwd"])
    monkeypatch.setenv("HOME", str(found["home"]))
    monkeypatch.setenv("PREFECT_HOME", str(found["prefect"]))
    monkeypatch.setattr(tempfile, "tempdir", str(found["temporary"]))
    found |= {"code": ROOT, "prefix": Path(sys.prefix), "modules": Path(sysconfig.get_path("purelib"))}
    return found | {"commands": Path(sysconfig.get_path("scripts")), "system": Path("/etc")}


CLOSED = ("prefect", "modules", "commands", "system")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("relation", ["is it", "lies above it", "lies in it", "lies beside it"])
def test_each_relation_of_a_directory(relation: str, linked: bool, places: dict[str, Path], tmp_path: Path) -> None:
    """A destination is neither a place with files of programs and settings, nor above one, nor in one that holds
    nothing else. Links are followed."""
    job_file, manifest = places["job"] / "job.yaml", places["list"] / "list.csv"
    for name, place in places.items():
        if name == "elsewhere" or (name in ("prefix", "modules", "commands", "code") and relation == "lies beside it"):
            continue
        destination = {
            "is it": place, "lies above it": place.parent, "lies in it": place / "out",
            "lies beside it": place.parent / f"{place.name}-out",
        }[relation]  # fmt: skip
        if linked:
            link = tmp_path / f"link-{name}"
            link.symlink_to(destination)
            destination = link
        refused = relation in ("is it", "lies above it") or (relation == "lies in it" and name in CLOSED)
        if name == "system" and relation == "lies beside it":
            continue
        try:
            refuse_own_files(job_for(destination, manifest), job_file)
        except UserError as error:
            assert refused, f"{name}: {error}"
            assert "a folder of its own" in str(error)
        else:
            assert not refused, f"{name}: {relation}"


@pytest.mark.parametrize("inside", [".aws", ".ssh", ".config/x", ".local/bin"])
def test_settings_of_the_user_are_closed(inside: str, places: dict[str, Path]) -> None:
    """A folder in the home directory is a destination, and one for settings or commands is not."""
    with pytest.raises(UserError, match="settings of your own"):
        refuse_own_files(job_for(places["home"] / inside, places["list"] / "list.csv"))
    refuse_own_files(job_for(places["home"] / "images", places["list"] / "list.csv"))


def write(folder: Path, destination: Path, rows: list[list[str]], **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["url", "key"], *rows])
    job: dict[str, Any] = {
        "name": "hostile", "manifest": "rows.csv", "destination": f"file://{destination}/", "checks": "none",
        "source": {"allow_private_addresses": ["127.0.0.1"]}, "failure_budget": "100%", "processes": 2, **more,
    }  # fmt: skip
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_name_of_a_list_is_executed_read_or_replaces_a_job(project: Project, origin: Origin, tmp_path: Path) -> None:
    """A run writes all names where the job lets it. Commands typed there, of that job and another one, with a Prefect
    server of their own and with a given one, do not execute them, and do not read them as settings."""
    canary = tmp_path / "canary"
    bodies = hostile(canary)
    assert len(bodies) >= 30
    rows = [[origin.add(f"/{number}", body), key] for number, (key, body) in enumerate(bodies.items())]
    there = tmp_path / "objects"
    first = write(tmp_path / "first", there, [*rows, [origin.url("/0"), "job.yaml"]])
    written = project.cli.run(["run", str(first)], tmp_path / "first").expect(0)
    assert {key: (there / key).read_bytes() for key in bodies} == bodies, written.text
    was = first.read_bytes()

    other = write(tmp_path / "other", tmp_path / "copies", [[origin.add("/a.jpg", b"an image"), "a.jpg"]])
    ferry = str(Path(sysconfig.get_path("scripts"), "ferry"))
    own = {name: text for name, text in project.cli.environment.items() if not name.startswith("PREFECT_API")}
    own = {name: text for name, text in own.items() if name not in ("PREFECT_HOME", "PYTHONPATH")}
    given = own | {"PREFECT_API_URL": project.cli.environment["PREFECT_API_URL"]}
    for environment, arguments, code in (
        (own, ["status", str(first)], 0),
        (own, ["run", str(first)], 2),  # the working directory is the destination
        (own, ["run", str(other)], 0),
        (given, ["run", str(other)], 0),
        (given, ["deploy", "--dry-run"], 2),
    ):
        ended = subprocess.run(
            [ferry, *arguments], cwd=there, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert (ended.returncode, TRACEBACK in ended.stderr) == (code, False), (arguments, ended.stdout, ended.stderr)
        assert not list(tmp_path.glob("canary*")), (arguments, ended.stderr)
    command = [ferry, "ui", str(other), "--json"]
    page = subprocess.Popen(command, cwd=there, env=own, stdout=subprocess.PIPE, text=True)
    try:
        assert page.stdout is not None
        assert [page.stdout.readline() for _ in range(2)][1].startswith(' "url"')
    finally:
        page.kill()
        page.wait()
    assert not list(tmp_path.glob("canary*"))
    assert first.read_bytes() == was
