"""The contract of a state, in a directory and in a bucket on a real server, and with failing disks."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from demo.s3 import S3Server
from ferry.core.errors import Damaged, Fatal, UserError
from ferry.state.bucket import BucketState, open_state
from ferry.state.files import DirectoryState, State
from ferry.storage.access import S3Access
from ferry.storage.factory import open_control
from tests.servers.odd_s3 import OddS3
from tests.support.helpers import access, read_access

pytestmark = pytest.mark.matrix


@pytest.fixture(params=["directory", "bucket"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    if request.param == "directory":
        return DirectoryState(tmp_path / "state")
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    return open_state(f"s3://{bucket}/some/state", access(s3), tmp_path / "cache")


def test_what_is_written_is_read(state: State) -> None:
    """A file has the bytes that were written last."""
    for data in (b"", b"one", bytes(range(256)) * 9):
        state.write("plan/x.bin", data)
        assert state.read("plan/x.bin") == data
        assert state.local("plan/x.bin").read_bytes() == data


def test_a_missing_file_is_file_not_found(state: State) -> None:
    """Reading a missing file raises FileNotFoundError."""
    for read in (state.read, lambda name: state.local(name).read_bytes()):
        with pytest.raises(FileNotFoundError):
            read("plan/none.json")


def test_create_is_exclusive(state: State) -> None:
    """Only the first creation of a file succeeds, and its bytes stay."""
    assert state.create("lease.json", b"one") is True
    assert state.create("lease.json", b"two") is False
    assert state.read("lease.json") == b"one"


def test_of_many_creations_one_wins(state: State) -> None:
    """Of eight concurrent creations one succeeds, and the file has its bytes."""
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: state.create("lease.json", b"%d" % n), range(8)))
    assert won.count(True) == 1
    assert state.read("lease.json") == b"%d" % won.index(True)


def test_swap_replaces_what_it_expects(state: State) -> None:
    """A swap replaces only the expected content, not another one or a missing file."""
    assert state.swap("lease.json", b"one", b"two") is False
    with pytest.raises(FileNotFoundError):
        state.read("lease.json")
    state.write("lease.json", b"one")
    assert state.swap("lease.json", b"other", b"two") is False
    assert state.swap("lease.json", b"one", b"two") is True
    assert state.swap("lease.json", b"one", b"three") is False
    assert state.read("lease.json") == b"two"


def test_of_many_swaps_one_wins(state: State) -> None:
    """Of eight concurrent swaps of the same content one succeeds."""
    state.write("lease.json", b"old")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: state.swap("lease.json", b"old", b"%d" % n), range(8)))
    assert won.count(True) == 1
    assert state.read("lease.json") == b"%d" % won.index(True)


def test_list_names_a_folder_and_no_other(state: State) -> None:
    """A listing has the sorted full names below a folder, and none of a folder whose name begins alike."""
    for name in ("outcomes/b", "outcomes/a", "outcomes2/x", "plan/hints/h", "plan/plan.json", "lease.json"):
        state.write(name, b"x")
    assert state.list("outcomes") == ["outcomes/a", "outcomes/b"]
    assert state.list("plan") == ["plan/hints/h", "plan/plan.json"]
    assert state.list("plan/hints") == ["plan/hints/h"]
    assert state.list("ledger") == []


def test_delete_is_of_those_alone_and_of_missing_ones_too(state: State) -> None:
    """Only the named files are deleted, and a missing one is not an error."""
    for name in ("a/1", "a/2", "a/3"):
        state.write(name, b"x")
    state.delete(name for name in ("a/1", "a/3", "a/none"))
    state.delete([])
    assert state.list("a") == ["a/2"]


def test_write_file_moves_a_file_in(state: State) -> None:
    """A file is moved into the state, and the local file does not exist any more."""
    state.spool_dir.mkdir(parents=True, exist_ok=True)
    path = state.spool_dir / "x"
    path.write_bytes(b"big" * 1000)
    state.write("ledger/l.parquet", b"old")
    state.write_file("ledger/l.parquet", path)
    assert state.read("ledger/l.parquet") == b"big" * 1000
    assert not path.exists()


def test_a_reader_finds_whole_files_only(state: State) -> None:
    """Readers and local copies have complete files while the file is rewritten again and again."""
    size = 200_000
    state.write("plan/x", b"a" * size)
    stop = threading.Event()
    errors: list[Any] = []

    def read(take: Callable[[], bytes]) -> None:
        while not stop.is_set():
            try:
                data = take()
                if len(data) != size or len(set(data)) != 1:
                    errors.append((len(data), set(data)))
            except Exception as exc:
                errors.append(exc)

    ways: list[Callable[[], bytes]] = [lambda: state.read("plan/x")]
    ways += [lambda: state.local("plan/x").read_bytes()] * 3
    readers = [threading.Thread(target=read, args=[way]) for way in ways]
    for reader in readers:
        reader.start()
    for n in range(60):
        state.write("plan/x", bytes([97 + n % 26]) * size)
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []


@pytest.mark.parametrize(
    "name", ["{tmp}/out/file", "../out/file", "chunks/../../../out/file", "", "plan/", ".", "a//b"]
)
@pytest.mark.parametrize("prefix", ["", "some/state"])
def test_no_name_leads_out_of_the_state(name: str, prefix: str, tmp_path: Path) -> None:
    """A file name in a plan that leads out of the state is refused, and no file is written outside."""
    (tmp_path / "out").mkdir()
    name = name.format(tmp=tmp_path)
    with OddS3() as server:
        for key in (name.lstrip("/"), f"{prefix}/{name}".lstrip("/")):
            server.put("bucket", key, b"planted")
        bucket = open_control("s3://bucket", S3Access(server.endpoint_url, anonymous=True), side="state")
        (tmp_path / "cache").mkdir()
        before = sorted(tmp_path.rglob("*"))
        in_bucket = BucketState(bucket, f"s3://bucket/{prefix}", prefix, tmp_path / "cache")
        for state in (in_bucket, DirectoryState(tmp_path / "state" / "of a job")):
            with pytest.raises(Damaged, match="leads out of the state"):
                state.local(name)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "state" not in path.parts] == []


def test_what_lies_on_this_machine_is_for_its_owner_alone(state: State) -> None:
    """Files have mode 0600 and their root 0700, since chunks contain signatures."""
    before = os.umask(0o022)
    try:
        state.write("chunks/a.parquet", b"x")
        state.create("lease.json", b"x")
        state.spool_dir.mkdir(parents=True, exist_ok=True)
        (state.spool_dir / "m").write_bytes(b"x")
        state.write_file("plan/manifest.parquet", state.spool_dir / "m")
        for name in ("chunks/a.parquet", "plan/manifest.parquet", "lease.json"):
            path = state.local(name)
            assert path.stat().st_mode & 0o777 == 0o600, name
        root = state.local("lease.json").parent
        assert root.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_an_outcome_file_that_changed_is_read_anew(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A file that was deleted and written again under its name is downloaded again."""
    state = open_state(f"s3://{bucket}/state", access(s3), tmp_path / "cache")
    for name in ("outcomes/000001-plan-00000.parquet", "plan/hints/a.parquet", "plan/plan.json"):
        state.write(name, b"old")
        assert state.local(name).read_bytes() == b"old"
        state.delete([name])
        state.write(name, b"new")
        assert state.local(name).read_bytes() == b"new", name


def test_a_bucket_state_that_cannot_be_reached_is_fatal(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Refused credentials raise Fatal for each writing operation, without the response's body in the text."""
    state = open_state(f"s3://{bucket}/state", read_access(s3), tmp_path / "cache")
    path = tmp_path / "file"
    path.write_bytes(b"x")
    for work in (
        lambda: state.write("a", b"x"),
        lambda: state.create("a", b"x"),
        lambda: state.write_file("a", path),
    ):
        with pytest.raises(Fatal) as caught:
            work()
        assert "<Error>" not in str(caught.value)
        assert "credentials" in str(caught.value)
    assert path.exists()


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_full_disk_is_fatal_and_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC at any step raises Fatal; the old file stays, and no temporary file is left."""
    state = DirectoryState(tmp_path / "state")
    state.write("plan/x", b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    works: list[Callable[[], object]] = [lambda: state.create("plan/new", b"new")] if call != "replace" else []
    if call != "link":
        works += [lambda: state.write("plan/x", b"new"), lambda: state.swap("plan/x", b"old", b"new")]
    for work in works:
        with pytest.raises(Fatal, match="no space left"):
            work()
    monkeypatch.undo()
    assert state.read("plan/x") == b"old"
    assert sorted(path.name for path in (tmp_path / "state/plan").iterdir()) == ["x"]


def test_a_read_only_disk_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EROFS raises Fatal, and the text says that the disk is read-only."""

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    state = DirectoryState(tmp_path / "state")
    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(Fatal, match="read-only"):
        state.write("plan/x", b"new")


def test_a_swap_that_cannot_take_its_lock_is_fatal(tmp_path: Path) -> None:
    """An OSError of the lock file raises Fatal, which the thread that renews the lease handles."""
    state = DirectoryState(tmp_path / "state")
    state.write("lease.json", b"old")
    (tmp_path / "state/.lease.json.lock").mkdir()
    with pytest.raises(Fatal):
        state.swap("lease.json", b"old", b"new")


def test_a_state_that_is_a_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    """A state that is a file raises UserError with its path."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file"):
        DirectoryState(tmp_path / "file")


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    """A temporary file that a killed process left is not listed."""
    state = DirectoryState(tmp_path / "state")
    state.write("outcomes/a", b"x")
    (tmp_path / "state/outcomes/.part-xyz").write_bytes(b"half")
    assert state.list("outcomes") == ["outcomes/a"]
