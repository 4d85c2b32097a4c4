"""Directories that may not be a destination, since a row's key could name a file that a program executes or reads."""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ferry.core import UserError, below

if TYPE_CHECKING:
    from ferry.job import Job

ROOT = Path(__file__).resolve().parents[1]
_SYSTEM = ("/bin", "/boot", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr/bin", "/usr/lib", "/usr/sbin",
           "/var/spool/cron")  # fmt: skip
_NAMED = re.compile(r"(PREFECT|AWS|AZURE)_\w*(FILE|PATH|HOME|BUNDLE)|GOOGLE_APPLICATION_CREDENTIALS")
_OF_HOME = (".aws", ".azure", ".config", ".docker", ".gnupg", ".kube", ".local/bin", ".prefect", ".ssh")


def refuse_own_files(job: Job, job_file: Path | None = None) -> None:
    """Raises UserError for a destination whose keys could name such files. Symbolic links are followed.

    | the destination | working directory, job file, manifest, home, temporary folder, installation, PATH, paths in PREFECT_, AWS_ and other variables | Prefect's home, states, modules, commands, settings |
    |---|---|---|
    | is that path, or above it | refused | refused |
    | is inside it | allowed: `./out/` | refused |
    | is elsewhere | allowed | allowed |
    """  # noqa: E501
    uri = job.destination.uri
    if not uri.startswith("file:"):
        return
    for what, path in [*_with_own_folders(job, job_file), *_protected(job_file)]:
        if below(uri, str(path)) is not None:
            raise _refusal(uri, f"contains {what} ({path})")
    for what, path in _protected(job_file):
        if below(str(path), uri) is not None:
            raise _refusal(uri, f"is inside {what} ({path})")


def _refusal(uri: str, how: str) -> UserError:
    return UserError(
        f"the destination ({uri}) {how}: a row of the manifest could replace a file there that is executed or read "
        "as settings. Use a separate folder as the destination"
    )


def _with_own_folders(job: Job, job_file: Path | None) -> Iterator[tuple[str, Path]]:
    """Returns directories that may contain a folder for objects."""
    yield "the working directory", Path.cwd()
    if job_file is not None:
        yield "the job file", job_file.absolute()
    if "://" not in job.manifest_address:
        yield "the manifest", Path(job.manifest_address)
    certificate = job.network.client_certificate
    for path in (job.network.ca_bundle, *((certificate.certificate, certificate.key) if certificate else ())):
        if path is not None:
            yield "a file of `network`", Path(path)
    yield "the folder of temporary files", Path(tempfile.gettempdir())
    yield "the installation of Python", Path(sys.prefix)
    yield "Ferry's own code", ROOT
    if home := _home():
        yield "your home directory", home
    for entry in filter(None, sys.path):
        yield "a directory of Python modules", Path(entry)
    for entry in filter(None, os.environ.get("PATH", "").split(os.pathsep)):
        yield "commands", Path(entry)
    for name, value in os.environ.items():
        if value and _NAMED.fullmatch(name):
            yield f"the path in {name}", Path(os.path.expanduser(value)).absolute()  # noqa: PTH111  # raises nothing


def _protected(job_file: Path | None) -> Iterator[tuple[str, Path]]:
    """Returns directories in which every file may be executed, or read as settings."""
    if given := os.environ.get("PREFECT_HOME"):
        yield "Prefect's home", Path(given).absolute()
    ferry_folder = (job_file.absolute().parent if job_file is not None else Path.cwd()) / ".ferry"
    yield "Prefect's home", ferry_folder / "prefect"
    yield "states of jobs", ferry_folder
    for package in ("flows", "tasks", "ferry", "demo"):
        yield "Ferry's own code", ROOT / package
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield "Python's modules", Path(sysconfig.get_path(name))
    yield "Python's modules", Path(site.getusersitepackages())
    yield "commands", Path(sysconfig.get_path("scripts"))
    yield "copies of states", Path(tempfile.gettempdir(), f"ferry-state-{os.getuid()}")
    for text in _SYSTEM:
        yield "a directory of the system", Path(text)
    if home := _home():
        for text in _OF_HOME:
            yield "settings of your own", home / text


def _home() -> Path | None:
    """Returns the user's home, or None: a numeric user of a container has none, and `/` does not count."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home != Path("/") else None
