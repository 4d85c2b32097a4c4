"""The container image, as far as it can be tried without one: its recipe, and a project of the files that it names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.flows.project import ROOT

CONTAINERFILE = ROOT / "deployments" / "container" / "Containerfile"
STARTER = ROOT / "deployments" / "container" / "start.sh"


def instructions() -> list[tuple[str, str]]:
    """The instructions in order, continued lines joined, comments left out."""
    text = "".join(line for line in CONTAINERFILE.read_text().splitlines(True) if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def copied() -> list[tuple[list[str], str]]:
    """What is taken from the project, and where it is put."""
    taken = [shlex.split(rest) for name, rest in instructions() if name == "COPY" and "--from=" not in rest]
    return [(words[:-1], words[-1]) for words in taken]


def test_the_recipe() -> None:
    """A base with a full version, packages by their hashes and none built, nobody's root, no secret, no shell form."""
    lines = instructions()
    given = dict(rest.partition("=")[::2] for name, rest in lines if name == "ARG")
    bases = [rest.split()[0] for name, rest in lines if name == "FROM"]
    for base in bases:
        name, _, tag = re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], base).partition(":")
        assert (name, bool(re.match(r"\d+\.\d+\.\d+-slim-", tag))) == ("python", True), base
    installs = [rest for name, rest in lines if name == "RUN" and "pip install" in rest]
    assert installs
    assert all("--require-hashes" in rest and "--only-binary :all:" in rest for rest in installs)
    last_from = max(number for number, (name, _) in enumerate(lines) if name == "FROM")
    final = lines[last_from:]
    assert [rest for name, rest in final if name == "USER"] == ["10001:10001"]
    assert [name for name, _ in final].index("USER") > max(n for n, (name, _) in enumerate(final) if name == "RUN")
    assert [rest[0] for name, rest in final if name in ("CMD", "ENTRYPOINT")] == ["["]
    assert {name for name, _ in lines} <= {"ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "CMD"}
    for name, rest in lines:
        assert name not in ("ARG", "ENV") or not re.search(r"(?i)password|secret|token|access_key|auth", rest)


def test_the_context_holds_what_is_copied_and_little_else() -> None:
    """What the recipe copies is let in by the ignore file; the state, git's history and credentials are not."""
    first, *rules = [
        line
        for line in (CONTAINERFILE.parent / "Containerfile.dockerignore").read_text().splitlines()
        if line[:1] != "#"
    ]
    assert first == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == {name for names, _ in copied() for name in names}
    assert any(fnmatch("flows/__pycache__", rule) for rule in rules)


@pytest.mark.slow
def test_a_project_of_these_files_alone(tmp_path: Path) -> None:
    """The flow and the command need no other file of the project than those that the image holds."""
    for names, to in copied():
        for name in names:
            there = tmp_path / to.lstrip("/")
            there = there if Path(to).name == Path(name).name else there / Path(name).name
            there.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, there)
    root = tmp_path / "opt" / "ferry"
    (imports,) = [found for name, rest in instructions() if name == "RUN" for found in re.findall(r'-c "(.*)"', rest)]
    ours = re.findall(r"\b(?:flows|tasks|ferry)[.\w]+", imports)
    code = f"import sys, tasks, {', '.join(ours)}\nassert 'demo' not in sys.modules\n"
    code += "print(flows.__path__[0], tasks.__path__[0])"
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(root),
        "HOME": str(tmp_path),
        "PREFECT_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [str(root / "flows"), str(root / "tasks")], done.stderr
    deployed = yaml.safe_load((root / "prefect.yaml").read_text())["deployments"]
    assert all((root / deployment["entrypoint"].partition(":")[0]).is_file() for deployment in deployed)


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ("server", "server start --host 0.0.0.0 --port 4200|db-secret|operator:pa$s"),
        (
            "worker",
            "worker start --pool ferry --type process --limit 2 --install-policy never --with-healthcheck"
            "|unset|operator:pa$s",
        ),
    ],
)
def test_how_it_starts(role: str, says: str, tmp_path: Path) -> None:
    """The starter turns files of secrets into variables of the process that it starts, and of no other."""
    (tmp_path / "prefect").write_text(
        '#!/bin/sh\necho "$*|${PREFECT_SERVER_DATABASE_PASSWORD:-unset}|$PREFECT_API_AUTH_STRING"\n'
    )
    (tmp_path / "prefect").chmod(0o755)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / f"{role}.env").write_text(
        "# a comment\nPREFECT_API_AUTH_STRING='operator:pa$s'\nPREFECT_SERVER_API_AUTH_STRING=operator:pw\n"
    )
    if role == "server":
        (secrets / "database_password").write_text("db-secret\n")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FERRY_SECRETS": str(secrets)}
    done = subprocess.run([str(STARTER), role], env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == says


def test_how_it_stops(tmp_path: Path) -> None:
    """SIGTERM to the starter of a worker: its runs are told first, and the worker only when they have ended."""
    (tmp_path / "prefect").write_text(WORKER)
    shutil.copy(ROOT / "deployments" / "stop_runs.sh", tmp_path)
    (tmp_path / "prefect").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FERRY_SECRETS": str(tmp_path), "LOG": str(tmp_path / "log")}
    process = subprocess.Popen([str(STARTER), "worker"], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "run started\n"
    process.terminate()
    assert process.wait(30) == 7
    assert (tmp_path / "log").read_text().splitlines() == ["run told", "run ended", "worker told"]


@pytest.mark.parametrize(("end", "code"), [("exit 3", 3), ("kill -KILL $$", 137)])
def test_a_worker_that_ends_by_itself(end: str, code: int, tmp_path: Path) -> None:
    """The starter ends with its code, also where the code looks like that of a signal."""
    (tmp_path / "prefect").write_text(f"#!/bin/sh\n{end}\n")
    (tmp_path / "prefect").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FERRY_SECRETS": str(tmp_path)}
    assert subprocess.run([str(STARTER), "worker"], env=environment, timeout=30, check=False).returncode == code


# A worker with one run, which takes half a second to end. It ends with 7.
WORKER = """#!/usr/bin/env python3
import os, signal, subprocess, sys, time
log = open(os.environ["LOG"], "a", buffering=1)
code = '''
import os, signal, sys, time
log = open(os.environ["LOG"], "a", buffering=1)
def told(*_):
    log.write("run told\\\\n"); time.sleep(0.5); log.write("run ended\\\\n"); os._exit(0)
signal.signal(signal.SIGTERM, told)
print("run started", flush=True)
while True: time.sleep(1)
'''
def told(*_):
    log.write("worker told\\n"); os._exit(7)
signal.signal(signal.SIGTERM, told)
run = subprocess.Popen([sys.executable, "-c", code])
run.wait()
while True: time.sleep(1)
"""


def start(folder: Path, what: str, **environment: str) -> tuple[int, str]:
    """Runs start.sh as the user `nobody` where this is root, with a stand-in for `prefect`: exit code and output."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    stand_in = commands / "prefect"
    stand_in.write_text('#!/bin/sh\necho "prefect $* auth=[${PREFECT_SERVER_API_AUTH_STRING:-}]"\n')
    stand_in.chmod(0o755)
    given = {"PATH": f"{commands}:/usr/bin:/bin", "FERRY_SECRETS": str(folder / "secrets"), **environment}
    script = folder / "start.sh"
    shutil.copy(STARTER, script)
    script.chmod(0o755)
    user: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    ended = subprocess.run(
        ["/bin/sh", str(script), what], env=given, capture_output=True, text=True, timeout=60, check=False, **user
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_no_server_starts_without_its_password(tmp_path: Path) -> None:
    """A secrets file that cannot be read, an empty one, and none: exit 1, and no server. With the password, one."""
    for above in (tmp_path, *tmp_path.parents):  # to what is this test run's; xdist adds a folder
        if above == Path(tempfile.gettempdir()):
            break
        above.chmod(0o755)
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o755)
    file = secrets / "server.env"
    for text, mode, words in (
        (None, 0, "PREFECT_SERVER_API_AUTH_STRING is empty"),
        ("", 0o444, "PREFECT_SERVER_API_AUTH_STRING is empty"),
        ("PREFECT_SERVER_API_AUTH_STRING=operator:pw\n", 0o000, "cannot be read by user"),
    ):
        if text is not None:
            file.write_text(text)
            file.chmod(mode)
        code, said = start(tmp_path, "server")
        assert (code, words in said, "server start" in said) == (1, True, False), said
    file.chmod(0o444)
    assert start(tmp_path, "server") == (0, "prefect server start --host 0.0.0.0 --port 4200 auth=[operator:pw]\n")
    file.unlink()
    code, said = start(tmp_path, "server", PREFECT_SERVER_API_AUTH_STRING="operator:pw")
    assert (code, "auth=[operator:pw]" in said) == (0, True)
    (secrets / "database_password").write_text("pw")
    (secrets / "database_password").chmod(0o000)
    code, said = start(tmp_path, "server", PREFECT_SERVER_API_AUTH_STRING="operator:pw")
    assert (code, "database_password cannot be read" in said) == (1, True)
