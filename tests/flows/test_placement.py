"""A deployment's state must outlive its run."""

from __future__ import annotations

import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from ferry.core.errors import UserError
from tasks.state_location import (
    find_clone_root,
    is_prefects_container,
    on_root_device,
    placement_problem,
    refuse_lost_state,
)

CLONE = Path("/tmp/tmpab12cd_fprefect")


@pytest.mark.parametrize(
    ("state", "in_deployment", "clone_root", "container_layer", "lost"),
    [
        ("s3://bucket/state", True, CLONE, True, None),
        (f"{CLONE}/ferry-main/.ferry/job", False, CLONE, True, None),
        ("/srv/ferry/job", False, None, True, None),
        (f"{CLONE}/ferry-main/.ferry/job", True, CLONE, False, "copy of the code"),
        (f"{CLONE}/ferry-main/.ferry/job", True, CLONE, True, "copy of the code"),
        ("/srv/ferry/job", True, CLONE, True, "file system of this container"),
        ("/srv/ferry/job", True, None, True, "file system of this container"),
        ("/srv/ferry/job", True, CLONE, False, None),
        (f"{CLONE}-beside/job", True, CLONE, False, None),
        ("/srv/ferry/job", True, None, False, None),
    ],
)
def test_the_table(
    state: str, in_deployment: bool, clone_root: Path | None, container_layer: bool, lost: str | None
) -> None:
    """Only a directory that is deleted with the run is refused; the message names it and the fix."""
    problem = placement_problem(
        state, in_deployment=in_deployment, clone_root=clone_root, container_layer=container_layer
    )
    if lost is None:
        assert problem is None
    else:
        assert problem is not None
        assert lost in problem
        assert state in problem
        assert "s3://bucket/prefix" in problem


def test_a_workers_folder_is_found() -> None:
    """Only the folder that Prefect's process worker makes for a run is found, from inside it."""
    with tempfile.TemporaryDirectory(suffix="prefect") as made:
        root = Path(made).resolve()
        assert find_clone_root(root / "ferry-main" / "sub") == root
        assert find_clone_root(root) == root
    runner = Path("/tmp/runner_storage") / str(uuid.uuid4())
    assert find_clone_root(runner / "ferry-main") == runner
    for kept in ("/srv/ferry", "/tmp/ferry", "/tmp/tmpprefect", "/tmp/runner_storage", "/home/tmp/prefect"):
        assert find_clone_root(Path(kept)) is None, kept


@pytest.mark.parametrize(
    ("command", "its_own"),
    [
        ("/usr/bin/tini -g -- /opt/prefect/entrypoint.sh prefect flow-run execute ", True),
        ("/app/.venv/bin/python /app/.venv/bin/prefect worker start --pool ferry ", True),
        ("/sbin/init splash ", False),
        ("/usr/lib/systemd/systemd --system ", False),
        ("sh -c sleep infinity ", False),
        ("", False),
    ],
)
def test_whose_container_it_is(command: str, its_own: bool) -> None:
    """A container counts as temporary only if Prefect is its first process."""
    assert is_prefects_container(command) is its_own


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a mount of its own on Linux alone")
def test_a_mount_is_not_the_containers_layer() -> None:
    """A missing path is judged by the mount that it will be on."""
    assert on_root_device(Path("/no/such/folder"))
    assert not on_root_device(Path("/proc/no/such/folder"))


def test_a_run_of_a_deployment_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A state in the worker's folder is refused, also through a link; other states and runs are not."""
    with tempfile.TemporaryDirectory(suffix="prefect") as made:
        monkeypatch.chdir(made)
        inside = Path(made) / ".ferry" / "job"
        refuse_lost_state(str(inside))  # no deployment: `ferry run` in such a folder is the user's own affair

        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid.uuid4()))  # Prefect's own switch for tests
        with pytest.raises(UserError, match="deletes when this run ends"):
            refuse_lost_state(str(inside))
        (tmp_path / "link").symlink_to(made)
        with pytest.raises(UserError, match="deletes when this run ends"):
            refuse_lost_state(str(tmp_path / "link" / "job"))
        refuse_lost_state(str(tmp_path / "state"))
        refuse_lost_state("s3://bucket/state")
        monkeypatch.chdir(tmp_path)
        refuse_lost_state(str(inside))
