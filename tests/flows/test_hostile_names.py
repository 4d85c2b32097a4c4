"""No manifest can write files that programs execute or read as settings: 30 names in each kind of directory."""

from __future__ import annotations

import csv
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.origin import Origin
from ferry.core.errors import UserError
from ferry.job.model import Job
from flows.cli import commands as cli
from flows.cli import local_run
from tasks.job_file import load_job
from tasks.own_files import refuse_own_files
from tasks.run import open_run
from tests.flows.project import ROOT, TRACEBACK, Project

MODULES = (
    "ctypes", "uvicorn", "json", "gc", "runpy", "yaml", "sqlite3", "prefect", "pydantic", "logging", "sitecustomize",
    "usercustomize", "conftest", "flows/__init__", "flows/server/serve", "tasks/__init__",
    "tasks/workers/worker", "ferry/__init__", "ferry/processes/planner_process",
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
    """Returns key to body; each body leaves the canary if it is executed."""
    code = f"open({str(canary)!r}, 'a').write(__name__ + chr(10))\n"
    found = {f"{name}.py": code.encode() for name in MODULES}
    return found | {name: text.format(canary=str(canary)).encode() for name, text in SETTINGS.items()}


def job_for(destination: Path, manifest: Path) -> Job:
    return Job.model_validate({"name": "j", "manifest": str(manifest), "destination": f"file://{destination}/"})


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Paths that a manifest must not replace; the working directory is one of them."""
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
    """A destination may not be, contain, or be inside a protected path, also through links."""
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
            assert "a separate folder" in str(error)
        else:
            assert not refused, f"{name}: {relation}"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cwd", "the working directory"), ("job", "the job file"), ("list", "the manifest"),
        ("temporary", "the folder of temporary files"), ("prefix", "the installation of Python"),
        ("code", "Ferry's own code"), ("home", "your home directory"), ("elsewhere", "a directory of Python modules"),
    ],
)  # fmt: skip
def test_each_place_is_named(name: str, what: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the protected path that the destination contains."""
    monkeypatch.syspath_prepend(places["elsewhere"])
    if name == "code":  # which may have the installation in it
        monkeypatch.setattr(sys, "prefix", "/nowhere")
    with pytest.raises(UserError) as caught:
        refuse_own_files(job_for(places[name], places["list"] / "list.csv"), places["job"] / "job.yaml")
    assert f"contains {what} ({places[name]}" in str(caught.value)


def test_a_variable_that_names_the_home_of_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~name` without such a user is ignored, without a traceback."""
    monkeypatch.setenv("AWS_CONFIG_FILE", "~no-such-user-here/.aws/config")
    refuse_own_files(job_for(Path("/srv/images"), Path("list.csv")))


def test_a_bucket_asks_for_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket as destination needs no check, also without a working directory."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    refuse_own_files(Job.model_validate({"name": "j", "manifest": "list.csv", "destination": "s3://bucket/p/"}))


SYSTEM = (
    "/bin", "/boot", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr/bin", "/usr/lib", "/usr/sbin",
    "/var/spool/cron",
)  # fmt: skip


@pytest.mark.parametrize(
    ("place", "what"),
    [
        *((ROOT / package, "Ferry's own code") for package in ("flows", "tasks", "ferry", "demo")),
        *((Path(sysconfig.get_path(name)), "Python's modules") for name in ("stdlib", "purelib")),
        (Path(site.getusersitepackages()), "Python's modules"),
        (Path("{job}/.ferry/prefect"), "Prefect's home"),
        (Path("{job}/.ferry/another"), "states of jobs"),
        (Path(f"{{temporary}}/ferry-state-{os.getuid()}"), "copies of states"),
        *((Path(name), "a directory of the system") for name in SYSTEM),
    ],
)
def test_nothing_is_written_into_them(place: Path, what: str, places: dict[str, Path]) -> None:
    """A folder inside these directories is refused, whether it exists or not."""
    destination = Path(str(place).format(**places)) / "out" / "further down"
    with pytest.raises(UserError, match=f"is inside {what}"):
        refuse_own_files(job_for(destination, places["list"] / "list.csv"), places["job"] / "job.yaml")


@pytest.mark.parametrize(
    "inside", [".aws", ".config/x", ".docker", ".gnupg", ".kube/x", ".local/bin", ".prefect", ".ssh"]
)
def test_settings_of_the_user_are_closed(inside: str, places: dict[str, Path]) -> None:
    """A folder in the home directory is accepted, but not one for settings or commands."""
    with pytest.raises(UserError, match="settings of your own"):
        refuse_own_files(job_for(places["home"] / inside, places["list"] / "list.csv"))
    refuse_own_files(job_for(places["home"] / "images", places["list"] / "list.csv"))


BOUND = """
import os, subprocess, sys
from pathlib import Path
from ferry.planning.overlaps import refuse_overlaps
from ferry.core.errors import UserError
from ferry.job.model import Job
from tasks.own_files import refuse_own_files
folder = Path(sys.argv[1])
for name in ("project", "bound", "prefect"):
    (folder / name).mkdir()
os.chdir(folder / "project")
os.environ["PREFECT_HOME"] = str(folder / "prefect")
subprocess.run(["mount", "--bind", folder / "project", folder / "bound"], check=True)
job = Job.model_validate({"name": "j", "manifest": "/nowhere/list.csv", "destination": f"file://{folder}/bound/"})
for refuse in (refuse_own_files, lambda job: refuse_overlaps(job, str(folder / "project" / ".ferry" / "j"))):
    try:
        refuse(job)
    except UserError as error:
        print("refused:", error)
subprocess.run(["mount", "--bind", folder / "prefect", folder / "bound"], check=True)
try:
    refuse_own_files(Job.model_validate({**job.model_dump(), "destination": f"file://{folder}/bound/out/"}))
except UserError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="root alone can mount")
def test_a_directory_of_two_names_is_one(tmp_path: Path) -> None:
    """A bind mount, or a name in another case, is recognised as the same directory."""
    script = [sys.executable, "-c", BOUND, str(tmp_path)]
    if subprocess.run(["unshare", "-m", "mount", "--bind", tmp_path, tmp_path], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    ended = subprocess.run(["unshare", "-m", *script], capture_output=True, text=True, timeout=120, check=False)
    said = ended.stdout.splitlines()
    assert len(said) == 3, ended.stdout + ended.stderr
    assert f"contains the working directory ({tmp_path}/project)" in said[0]
    assert "is in the destination" in said[1]
    assert f"is inside Prefect's home ({tmp_path}/prefect)" in said[2]


@pytest.mark.parametrize(
    ("variable", "is_file", "relation"),
    [
        ("AWS_CONFIG_FILE", True, "contains the path in AWS_CONFIG_FILE"),
        ("AZURE_FEDERATED_TOKEN_FILE", True, "contains the path in AZURE_FEDERATED_TOKEN_FILE"),
        ("GOOGLE_APPLICATION_CREDENTIALS", True, "contains the path in GOOGLE_APPLICATION_CREDENTIALS"),
        ("PREFECT_PROFILES_PATH", True, "contains the path in PREFECT_PROFILES_PATH"),
        ("PREFECT_LOGGING_SETTINGS_PATH", True, "contains the path in PREFECT_LOGGING_SETTINGS_PATH"),
        ("PATH", False, "contains commands"),
        ("IMAGES_PATH", False, ""),
    ],
)
def test_what_the_environment_names(
    variable: str, is_file: bool, relation: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row cannot replace a settings file or a command that the environment names."""
    named = places["elsewhere"] / "aws.ini" if is_file else places["elsewhere"]
    monkeypatch.setenv(variable, f"/usr/bin:{named}" if variable == "PATH" else str(named))
    job = job_for(places["elsewhere"], places["list"] / "list.csv")
    if relation:
        with pytest.raises(UserError, match=relation):
            refuse_own_files(job)
    else:
        refuse_own_files(job)


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


def test_each_way_to_a_run_is_closed(places: dict[str, Path]) -> None:
    """`plan`, `run` and a deployment's run all refuse protected paths."""
    job_file = write(places["job"], places["job"] / ".ferry" / "prefect", [["http://127.0.0.1:9/a.jpg", "a.jpg"]])
    with pytest.raises(UserError, match="Prefect's home"):
        cli.plan(job_file)
    job = load_job(job_file)
    with pytest.raises(UserError, match="Prefect's home"):
        local_run.prepare(job, job_file, replan=False, wait=False)
    deployed = job_for(places["prefect"] / "out", places["list"] / "list.csv")
    with pytest.raises(UserError, match="Prefect's home"), open_run(deployed, "a run", None):
        pass


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_name_of_a_list_is_executed_read_or_replaces_a_job(project: Project, origin: Origin, tmp_path: Path) -> None:
    """Commands in a folder with all hostile names neither execute them nor read them as settings."""
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
