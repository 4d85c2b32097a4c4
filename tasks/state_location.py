"""Where a job's state is: its opening, and the check that it outlives a deployment's run."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ferry.core import UserError, in_bucket
from ferry.state import State, open_state
from ferry.storage import Access
from tasks import secrets

if TYPE_CHECKING:
    from ferry.job import Job


def cache_root() -> Path:
    """Returns the private directory for local copies of states in buckets. Its files may be deleted at any time.

    Raises UserError if another user owns the directory, or if others have access to it.
    """
    root = Path(tempfile.gettempdir()) / f"ferry-state-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(f"{root} is not a private directory of yours: delete it, or set TMPDIR to another directory")
    return root


def state_of(job: Job, access: Access | None = None) -> State:
    """Returns the job's state. The job's paths must be absolute (job_file.with_absolute_paths).

    ``access`` is the destination's, as far as it is resolved already.
    """
    assert job.state is not None
    if access is None:
        access = secrets.destination_access(job) if in_bucket(job.state) else Access()
    return open_state(job.state, access, cache_root())


@dataclass(frozen=True, slots=True)
class Placement:
    """The facts that decide whether a state outlives its run."""

    in_deployment: bool
    clone_root: Path | None  # the folder of fetched code that the worker deletes after the run, if the run is in one
    container_layer: bool  # the state is in the file system of a container that only runs Prefect


def placement_problem(state: str, *, in_deployment: bool, clone_root: Path | None, container_layer: bool) -> str | None:
    """Returns why ``state`` would be lost, with the fix, or None. A path must be absolute, without symbolic links.

    | state | in_deployment | under clone_root | container_layer | lost |
    |---|---|---|---|---|
    | in a bucket | any | any | any | no |
    | directory | no | any | any | no |
    | directory | yes | yes | any | with the clone |
    | directory | yes | no | yes | with the container |
    | directory | yes | no | no | no |
    """
    if "://" in state or not in_deployment:
        return None
    if clone_root is not None and Path(state).is_relative_to(clone_root):
        return (
            f"the state `{state}` is in a copy of the code that the worker deletes when this run ends; the next run "
            "would start from nothing. Set `state` in the job to `s3://bucket/prefix` or to a permanent directory, "
            "such as `/srv/ferry/NAME`; or start the worker in the project's root, as prefect.yaml does"
        )
    if container_layer:
        return (
            f"the state `{state}` is in the file system of this container and is deleted with it; the next run would "
            "start from nothing. Set `state` in the job to `s3://bucket/prefix`, or mount a volume there"
        )
    return None


def refuse_lost_state(state: str) -> None:
    """Raises UserError if ``state`` would not outlive this process's run."""
    if "://" in state:
        return
    path = Path(state).resolve()
    found = facts(path)
    problem = placement_problem(
        str(path),
        in_deployment=found.in_deployment,
        clone_root=found.clone_root,
        container_layer=found.container_layer,
    )
    if problem:
        raise UserError(problem)


def facts(state: Path) -> Placement:
    """Returns the facts about ``state`` as seen from this process."""
    clone_root = find_clone_root(Path.cwd().resolve())
    container_layer = is_prefects_container(_first_command()) and on_root_device(state)
    # Reading the deployment's ID may cost a request to the API, so it is read only if it matters.
    suspicious = clone_root is not None or container_layer
    return Placement(suspicious and _deployment_id() is not None, clone_root, container_layer)


def _deployment_id() -> str | None:
    from prefect.runtime import deployment  # late: `ferry` must set the server's address before Prefect is imported

    id_: str | None = deployment.id
    return id_


def find_clone_root(folder: Path) -> Path | None:
    """Returns the outermost of ``folder`` and its parents that a worker made for one run, by its name; or None."""
    from tasks.prefect_patches import RUNNER_FOLDER, WORKER_FOLDER  # late: as above

    for path in reversed([folder, *folder.parents]):
        if WORKER_FOLDER.fullmatch(path.name) or RUNNER_FOLDER.search(path.as_posix()):
            return path
    return None


def is_prefects_container(first_command: str) -> bool:
    """Returns whether process 1 is Prefect, as in a container that only runs Prefect.

    `/.dockerenv` or KUBERNETES_SERVICE_HOST are not enough: development machines, CI jobs and micro-VMs made from
    images also have them, but keep their disks. On a host, process 1 is an init system.
    """
    return "prefect" in first_command


def _first_command() -> str:
    """Returns the command line of process 1; "" without /proc."""
    try:
        return Path("/proc/1/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def on_root_device(path: Path) -> bool:
    """Returns whether ``path``, or its nearest existing parent, is on the device of `/`, not on a mounted volume."""
    existing = next(p for p in (path, *path.parents) if p.exists())
    return existing.stat().st_dev == Path("/").stat().st_dev
