"""A directory as the source listing: no file is omitted silently."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import ObjectError, UserError
from ferry.core.memory_budget import Budget
from ferry.core.quota import Share
from ferry.core.records import ErrorClass, Status
from ferry.state.files import DirectoryState
from ferry.storage.access import Access
from ferry.storage.directory.directory import Directory
from ferry.storage.directory.files import Folder
from ferry.storage.factory import open_store
from tests.support.helpers import IMAGE, by_key, directory_state, latest, make_body, make_job, plan, run


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Creates the listed directory with one image in it."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.jpg").write_bytes(IMAGE)
    return tmp_path / "old"


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    return directory_state(tmp_path)


def job_of(old: Path, **given: object):  # type: ignore[no-untyped-def]
    return make_job(manifest=f"file://{old}/", source={}, destination=f"file://{old.parent}/new/", **given)


def test_a_folder_that_cannot_be_read_is_an_error(old: Path, state: DirectoryState) -> None:
    """A directory that cannot be read fails the plan, since an incomplete listing looks complete."""
    fd = os.open(old, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("b.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    with pytest.raises(UserError, match=r"cannot be listed: .*ddd cannot be read \(File name too long\)"):
        plan(job_of(old), state)


def test_a_link_to_a_folder_elsewhere_is_an_error(old: Path, state: DirectoryState) -> None:
    """A link to a directory outside fails the plan until `exclude` names it."""
    (old.parent / "disk2").mkdir()
    (old.parent / "disk2" / "b.jpg").write_bytes(IMAGE)
    (old / "2020").symlink_to(old.parent / "disk2")
    with pytest.raises(UserError, match=r"old/2020/ is a link to a directory outside .*`exclude: \['2020/\*'\]`"):
        plan(job_of(old), state)
    assert plan(job_of(old, exclude=["2020/*"]), state).rows == 1


def test_a_link_that_leads_out_or_nowhere_is_a_failed_row(old: Path, state: DirectoryState) -> None:
    """A link that points outside, nowhere or to itself is a failed row."""
    (old.parent / "b.jpg").write_bytes(IMAGE)
    (old / "out.jpg").symlink_to(old.parent / "b.jpg")
    (old / "nowhere.jpg").symlink_to("/no/such/disk/b.jpg")
    (old / "itself.jpg").symlink_to(old / "itself.jpg")
    (old / "inside.jpg").symlink_to(old / "a.jpg")
    (old / "folder").mkdir()
    (old / "again").symlink_to(old / "folder")
    (old / "folder" / "c.jpg").write_bytes(IMAGE)
    run(job_of(old), state, Access())
    ends = {key: (outcome.status, outcome.error_class) for key, outcome in by_key(state).items()}
    copied, failed = (Status.COPIED, None), (Status.FAILED, ErrorClass.NOT_FOUND)
    assert ends == {
        "a.jpg": copied, "inside.jpg": copied, "folder/c.jpg": copied,
        "out.jpg": failed, "nowhere.jpg": failed, "itself.jpg": failed,
    }  # fmt: skip


class Meanwhile(Budget):
    """Budget that writes to the file once while memory is requested."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path: Path | None = path

    async def take(self, host: str, length: int | None) -> Share:
        if self._path is not None:
            with self._path.open("r+b") as file:
                file.seek(1000)
                file.write(b"new")
            self._path = None
        return await super().take(host, length)


@pytest.mark.parametrize("size", [4_000, 12_000_000])
def test_a_file_that_is_written_to_while_it_is_read(size: int, old: Path, tmp_path: Path) -> None:
    """A file that changes while it is read is an error, and the next read returns the new file."""
    path = old / "a.jpg"
    path.write_bytes(b"a" * size)
    os.utime(path, (1e9, 1e9))
    store = open_store(f"file://{old}/", Access(), tmp_path / "spool", budget=Meanwhile(path))
    with pytest.raises(ObjectError, match="changed while it was being read") as caught:
        asyncio.run(store.get("a.jpg", max_bytes=1 << 30))
    assert caught.value.error_class is ErrorClass.TRUNCATED
    assert not list((tmp_path / "spool").glob("*"))
    body, found, _ = asyncio.run(store.get("a.jpg", max_bytes=1 << 30))
    with body.buffer() as data:
        assert data[:] == path.read_bytes()
    assert found.size == size


def test_a_name_that_looks_like_another_is_no_duplicate(old: Path, state: DirectoryState) -> None:
    """A name that is not UTF-8 and the file named like its escaped form are not one file: one row fails."""
    (old / r"b\xffd.jpg").write_bytes(IMAGE)
    Path(os.fsdecode(os.fsencode(old) + b"/b\xffd.jpg")).write_bytes(IMAGE)
    for n in range(20):  # few of many collide
        (old / f"{n}.jpg").write_bytes(IMAGE)
    run(job_of(old), state, Access())
    outcomes = latest(state).values()
    assert sorted(outcome.status for outcome in outcomes) == [*[Status.COPIED] * 22, Status.FAILED]
    (failed,) = [outcome for outcome in outcomes if outcome.status is Status.FAILED]
    assert failed.error_class is ErrorClass.KEY_COLLISION
    assert failed.message is not None
    assert failed.message.startswith("another object whose name")


@pytest.mark.parametrize(
    ("number", "error_class"),
    [
        (errno.EIO, ErrorClass.STORE_ERROR),
        (errno.ENAMETOOLONG, ErrorClass.BAD_KEY),
        (errno.ENOTDIR, ErrorClass.KEY_COLLISION),
    ],
)
@pytest.mark.parametrize("operation", ["find", "remove", "clean", "put"])
def test_an_error_of_the_system_is_the_object_s(
    operation: str, number: int, error_class: ErrorClass, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a request to the directory meets, it is an ObjectError with the class of the errno."""
    folder = Folder(old, "test", create=False)
    directory = Directory(folder, tmp_path, Budget(1 << 20), None)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder, operation, fail)
    requests: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "find": lambda: directory.head("a.jpg", "destination"), "remove": lambda: directory.delete("a.jpg"),
        "clean": directory.clean, "put": lambda: directory.put("a.jpg", make_body(IMAGE, tmp_path), create=False),
    }  # fmt: skip
    with pytest.raises(ObjectError) as raised:
        asyncio.run(requests[operation]())
    assert raised.value.error_class is error_class
