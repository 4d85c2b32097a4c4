"""Is the state of a deployment's run where it outlives the run? (SEMANTICS: files and bodies)"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ferry.core import UserError


@dataclass(frozen=True, slots=True)
class Placement:
    """What decides whether a state outlives its run."""

    in_deployment: bool
    clone_root: Path | None  # the folder with the fetched code that the worker deletes, when the run works in one
    container_layer: bool  # the state lies in the file system of a container that Prefect is all of


def placement_problem(state: str, *, in_deployment: bool, clone_root: Path | None, container_layer: bool) -> str | None:
    """Why ``state`` (an address, or an absolute path without symbolic links) would be lost, with the fix; else None.

    | state | of a deployment | under clone_root | container_layer | lost |
    |---|---|---|---|---|
    | s3:// | any | any | any | no |
    | directory | no | any | any | no |
    | directory | yes | yes | any | with the clone |
    | directory | yes | no | yes | with the container |
    | directory | yes | no | no | no |
    """
    if "://" in state or not in_deployment:
        return None
    if clone_root is not None and Path(state).is_relative_to(clone_root):
        return (
            f"the state `{state}` lies in a copy of the code that the worker deletes when this run ends; the next run "
            "would start from nothing. Set `state` in the job to `s3://bucket/prefix` or to a directory that stays, "
            "such as `/srv/ferry/NAME`; or start the worker in the project's root, as prefect.yaml does it"
        )
    if container_layer:
        return (
            f"the state `{state}` lies in the layer of this container and goes with it; the next run would start from "
            "nothing. Set `state` in the job to `s3://bucket/prefix`, or mount a volume there"
        )
    return None


def refuse_lost_state(state: str) -> None:
    """Raises UserError when ``state`` would not outlive the run that this process works for."""
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
    """How this process stands to ``state``."""
    clone_root = find_clone_root(Path.cwd().resolve())
    container_layer = is_prefects_container(_first_command()) and on_root_device(state)
    # Outside a flow of a deployment the answer costs a request to the API: asked only where it matters.
    suspicious = clone_root is not None or container_layer
    return Placement(suspicious and _deployment_id() is not None, clone_root, container_layer)


def _deployment_id() -> str | None:
    from prefect.runtime import deployment  # late: `ferry` must know its server before Prefect is imported

    id_: str | None = deployment.id
    return id_


def find_clone_root(folder: Path) -> Path | None:
    """The outermost folder at or above ``folder`` that a worker made for one run, by its name."""
    from tasks.prefect_patches import RUNNER_FOLDER, WORKER_FOLDER  # late: as above

    for path in reversed([folder, *folder.parents]):
        if WORKER_FOLDER.fullmatch(path.name) or RUNNER_FOLDER.search(path.as_posix()):
            return path
    return None


def is_prefects_container(first_command: str) -> bool:
    """Whether the first process that this one can see is Prefect's: a container with nothing else to do.

    `/.dockerenv` or KUBERNETES_SERVICE_HOST alone say too much: development machines, CI jobs and micro-VMs
    made from images have them and keep their disks. On a host the first process is an init.
    """
    return "prefect" in first_command


def _first_command() -> str:
    """The command line of process 1; empty where there is no /proc."""
    try:
        return Path("/proc/1/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def on_root_device(path: Path) -> bool:
    """Whether ``path``, or what exists of it, lies on the device of `/`: volumes and bind mounts do not."""
    existing = next(p for p in (path, *path.parents) if p.exists())
    return existing.stat().st_dev == Path("/").stat().st_dev
