"""Files of a directory destination: no write leaves the directory, and a name means a complete file on disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from errno import EACCES, ELOOP, ENOENT, EPERM, EXDEV
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from ferry.core.errors import Fatal, ObjectError
from ferry.core.records import PARTS_DIRECTORY, ErrorClass
from ferry.state.open_uploads import mark_of
from ferry.storage.access import Access
from ferry.storage.directory import files as folder_module
from ferry.storage.directory.directory import walk
from ferry.storage.directory.files import Folder
from ferry.storage.errors import from_folder
from ferry.storage.factory import open_store
from tests.faults.disk import Disk, How
from tests.support import helpers

ROOT = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def folder(root: Path) -> Iterator[Folder]:
    made = Folder(root, "mine", create=True)
    yield made
    made.close()


def put(folder: Folder, key: str, body: bytes | Path, *, create: bool = False) -> str:
    async def one() -> str:
        return await folder.put(key, body, create=create)

    return asyncio.run(one())


def read(folder: Folder, key: str) -> bytes:
    with os.fdopen(folder.open(key), "rb") as file:
        return file.read()


def files(root: Path) -> dict[str, bytes]:
    """Returns all files below the root by relative path, including unfinished ones."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- links and names that point outside


@pytest.mark.parametrize("key", ["out/x", "a/out/x", "out/deeper/x"])
@pytest.mark.parametrize("create", [False, True])
def test_a_linked_folder_is_not_written_through(
    key: str, create: bool, root: Path, tmp_path: Path, folder: Folder
) -> None:
    """A link on the path fails the row with a reason, and nothing outside changes."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = root / key.partition("out")[0] / "out"
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    store = open_store(f"file://{root}/", Access(), tmp_path, create=True)
    with pytest.raises(ObjectError, match="does not write through links") as caught:
        asyncio.run(store.put(key, helpers.make_body(b"x", tmp_path), {}, create=create))
    assert caught.value.error_class is ErrorClass.KEY_COLLISION
    assert not list(elsewhere.iterdir())


def test_a_linked_file_is_replaced_and_its_target_left(root: Path, tmp_path: Path, folder: Folder) -> None:
    """A write replaces a link to a file and not its target; with create it fails."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"old")
    root.mkdir()
    (root / "x").symlink_to(secret)
    with pytest.raises(FileExistsError):
        put(folder, "x", b"new", create=True)
    put(folder, "x", b"new")
    assert secret.read_bytes() == b"old"
    assert not (root / "x").is_symlink()
    assert read(folder, "x") == b"new"


def test_links_that_lead_out_are_not_read(root: Path, tmp_path: Path, folder: Folder) -> None:
    """Links that point outside are not read; links that stay inside are."""
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "a").mkdir(parents=True)
    (root / "a" / "x").write_bytes(b"x")
    (root / "file").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "relative").symlink_to("../secret")
    (root / "inside").symlink_to("a")
    (root / "loop").symlink_to("loop")
    for key, number in (("file", ELOOP), ("up/secret", ELOOP), ("relative", ELOOP), ("loop", ENOENT), ("none", ENOENT)):
        assert folder.find(key) is None
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
            folder.open(key)
        assert caught.value.errno == number
    store = open_store(f"file://{root}/", Access(), tmp_path)
    with pytest.raises(ObjectError, match="points outside") as refused:
        asyncio.run(store.get("up/secret", max_bytes=100))
    assert refused.value.error_class is ErrorClass.NOT_FOUND
    assert read(folder, "inside/x") == b"x"
    with pytest.raises(NotADirectoryError):
        put(folder, "inside/y", b"y")


@pytest.mark.parametrize(
    "key",
    [
        "../x",
        "a/../../x",
        "..",
        ".",
        "a/./x",
        "/x",
        "a//x",
        "",
        "x\0y",
        f"{PARTS_DIRECTORY}/x",
        f"a/{PARTS_DIRECTORY.upper()}-1",
    ],
)
def test_names_that_lead_elsewhere_are_none(key: str, root: Path, tmp_path: Path, folder: Folder) -> None:
    """Keys that planning refuses are also refused by the directory store."""
    (tmp_path / "x").write_bytes(b"outside")
    with pytest.raises(OSError, match="not a valid path"):
        put(folder, key, b"x")
    with pytest.raises(OSError, match="not a valid path"):
        folder.open(key)
    assert files(tmp_path) == {"x": b"outside"}


def test_a_folder_that_turns_into_a_link_at_any_moment(root: Path, tmp_path: Path, folder: Folder) -> None:
    """No write leaves the directory while another process swaps a directory for a link."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "a").mkdir(parents=True)
    over = threading.Event()

    def swap() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            moves: list[Callable[[], object]] = [
                lambda: (root / "a").rename(root / f"real{number}"),  # noqa: B023
                lambda: (root / "a").symlink_to(elsewhere),
                lambda: (root / "a").unlink(),
                lambda: (root / f"real{number}").rename(root / "a"),  # noqa: B023
            ]
            for move in moves:
                with contextlib.suppress(OSError):  # the writer also creates directories
                    move()
            time.sleep(0.001)  # as a directory, so that some writes meet it in each state

    thread = threading.Thread(target=swap)
    thread.start()
    ends = {"written": 0, "refused": 0}

    async def write() -> None:
        for number in range(300):
            try:
                await folder.put(f"a/{number}", b"x", create=False)
                ends["written"] += 1
            except OSError:
                ends["refused"] += 1

    try:
        asyncio.run(write())
    finally:
        over.set()
        thread.join()
    assert not list(elsewhere.iterdir())
    assert ends["written"]


def test_no_pipe_or_device_is_opened(root: Path, folder: Folder) -> None:
    """A named pipe is not opened, since that would block the reader."""
    root.mkdir()
    os.mkfifo(root / "pipe")
    assert folder.find("pipe") is None


# --- atomic writes


def test_a_reader_sees_the_old_file_or_the_new_one(root: Path, folder: Folder) -> None:
    """A reader never sees a partial file while the file is replaced."""
    bodies = [bytes([number]) * 3_000_000 for number in range(4)]
    put(folder, "a/x", bodies[0])
    over = threading.Event()
    seen: set[bytes] = set()

    def look() -> None:
        while not over.is_set():
            seen.add((root / "a" / "x").read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(20):
        put(folder, "a/x", bodies[number % 4])
    over.set()
    thread.join()
    assert seen <= set(bodies)


def test_of_many_that_create_one_wins(folder: Folder) -> None:
    """Of concurrent writes with create exactly one succeeds, and its bytes stay."""

    async def race() -> list[str | BaseException]:
        return await asyncio.gather(
            *(folder.put("a/x", bytes([n]) * 1000, create=True) for n in range(8)), return_exceptions=True
        )

    ends = asyncio.run(race())
    assert sum(isinstance(end, str) for end in ends) == 1
    assert {type(end) for end in ends if not isinstance(end, str)} == {FileExistsError}
    won = next(number for number, end in enumerate(ends) if isinstance(end, str))
    assert read(folder, "a/x") == bytes([won]) * 1000


def cannot(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a file system without hard links (EPERM), or another one than that of the unfinished files (EXDEV)."""
    real = os.replace

    def link(*_: Any, **__: Any) -> None:
        raise OSError(number, "no")

    def replace(old: Any, new: Any, **fds: Any) -> None:
        if number == EXDEV and not Path(old).name.startswith(PARTS_DIRECTORY + "-"):
            raise OSError(EXDEV, "no")
        real(old, new, **fds)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("number", [EPERM, EXDEV])
def test_file_systems_that_cannot_do_it(
    number: int, create: bool, root: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without link(2), or across file systems, writes have the same result and leave nothing behind."""
    cannot(number, monkeypatch)
    put(folder, "a/x", b"one", create=create)
    if create:
        with pytest.raises(FileExistsError):
            put(folder, "a/x", b"two", create=True)
    put(folder, "a/y", b"three")
    assert files(root) == {"a/x": b"one", "a/y": b"three"}


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from ferry.storage.directory.files import Folder
os.replace = lambda *a, **b: os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(Folder(Path(sys.argv[1]), sys.argv[2], create=True).put("a/x", b"x" * 100_000, create=False))
"""


def killed(root: Path, mark: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(root), mark], cwd=ROOT, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL


def test_what_killed_runs_left_is_found_and_only_that(root: Path, folder: Folder) -> None:
    """Unfinished files are never listed, and cleaning deletes only those of the same job."""
    killed(root, "mine")
    killed(root, "another")
    assert len(files(root)) == 2
    assert not list(walk(root))
    assert folder.clean() == 1
    (left,) = files(root)
    assert left.startswith(f"{PARTS_DIRECTORY}/another-")


def test_a_run_cleans_up_after_one_that_was_killed(origin: Origin, tmp_path: Path) -> None:
    """A run deletes its own job's unfinished files, and at its end the empty directory for them."""
    root, body = tmp_path / "out", make_image("jpeg", 1)
    job = helpers.make_job(
        manifest=str(helpers.write_list(tmp_path / "list.csv", [[origin.add("/a/b.jpg", body)]])),
        destination=f"file://{root}/",
    )  # fmt: skip
    state = helpers.directory_state(tmp_path)
    helpers.run(job, state, Access())
    assert files(root) == {"a/b.jpg": body}
    assert not (root / PARTS_DIRECTORY).exists()
    with helpers.engine(job, state, Access(), 2) as runtime:
        directory = runtime.object_transfer._destination.store._directory
        assert directory is not None
        mark = directory.folder._mark
    killed(root, mark)
    killed(root, "another")
    helpers.run(job, state, Access(), 2)
    left = files(root)
    assert left.pop("a/b.jpg") == body
    assert [name.startswith(f"{PARTS_DIRECTORY}/another-") for name in left] == [True]


def test_a_state_under_the_same_path_is_another_job(tmp_path: Path) -> None:
    """Two states under the same path on two machines have different marks, so cleaning skips the other."""
    state = helpers.directory_state(tmp_path)
    mark = mark_of(state)
    assert mark_of(helpers.directory_state(tmp_path)) == mark
    state.root.rename(tmp_path / "on another machine")
    other = helpers.directory_state(tmp_path)
    assert other.uri == state.uri
    assert mark_of(other) != mark
    writing, starting = (
        Folder(tmp_path / "out", mark, create=True),
        Folder(tmp_path / "out", mark_of(other), create=True),
    )
    with writing._temporary() as (parts, name, fd):
        os.close(fd)
        assert starting.clean() == 0
        os.stat(name, dir_fd=parts)


def test_which_names_are_one_is_tried(root: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name folding is found by creating files, none of which remain."""
    assert folder.folded_names() == frozenset()
    assert files(root) == {}
    real = os.stat

    def stat(path: Any, **more: Any) -> os.stat_result:
        return real(path.replace("-A", "-a") if isinstance(path, str) else path, **more)

    monkeypatch.setattr(os, "stat", stat)
    assert folder.folded_names() == {"case"}


# --- durability


@pytest.mark.parametrize("without", [0, EPERM, EXDEV])
@pytest.mark.parametrize("how", ["nothing", "everything", "chance"])
def test_a_power_cut_between_any_two_calls(
    how: How, without: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut at any step, files that put() returned for are on disk, and no file is partial."""
    if without:
        cannot(without, monkeypatch)
    disk = Disk(root)
    folder = Folder(root, "mine", create=True)
    rng = random.Random(6)
    written: dict[str, list[bytes]] = {}

    async def write() -> None:
        for number in range(14):
            key = rng.choice(["x", "a/x", "a/b/x", "a/b/y", "c/d/e/x"])
            body = bytes([number]) * rng.randint(1, 5000)
            written.setdefault(key, []).append(body)
            create = len(written[key]) == 1 and rng.random() < 0.5
            await folder.put(key, body, create=create)
            disk.promise((key, number))

    with disk.recording(monkeypatch):
        asyncio.run(write())
    folder.close()
    cuts = len(disk.steps)
    assert cuts > 60
    for count in range(cuts + 1):
        left = disk.after_cut(count, how, tmp_path / f"cut-{how}-{count}", rng)
        there = {key: body for key, body in files(left).items() if PARTS_DIRECTORY not in key} if left.exists() else {}
        for key, body in there.items():
            assert body in written[key], f"after {count} steps a part of {key} is there"
        for key, number in disk.promised(count):
            assert key in there, f"after {count} steps {key} is lost"
            assert there[key][0] >= number


def test_many_writes_wait_for_the_disk_together(root: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent writes to one directory share its syncs."""
    real, synced = os.fsync, []

    def fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            synced.append(path)
            time.sleep(0.01)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)

    async def write() -> None:
        await asyncio.gather(*(folder.put(f"a/{number}", b"x", create=False) for number in range(200)))

    asyncio.run(write())
    assert root / "a" in synced
    assert len(synced) < 120
    assert len(files(root)) == 200


def test_a_folder_that_goes_away_is_no_success(root: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is deleted between rename and sync fails the write."""
    real = folder_module.rename_into_place

    def place(*args: Any, **more: Any) -> None:
        real(*args, **more)
        (root / "a" / "x").unlink()
        (root / "a").rmdir()

    monkeypatch.setattr(folder_module, "rename_into_place", place)
    with pytest.raises(OSError, match="deleted during the write"):
        put(folder, "a/x", b"x")


# --- permissions


def refusing(monkeypatch: pytest.MonkeyPatch, refuse: Callable[[str], bool]) -> None:
    real = os.open

    def opened(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if refuse(str(path)):
            raise PermissionError(EACCES, "no")
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", opened)


def test_a_folder_without_the_right_to_write(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without write permission fails its rows; the destination itself ends the run."""
    (root / "locked").mkdir(parents=True)
    store = open_store(f"file://{root}/", Access(), tmp_path, create=True)

    def write(key: str) -> Coroutine[Any, Any, object]:
        return store.put(key, helpers.make_body(b"x", tmp_path), {})

    refusing(monkeypatch, lambda path: path == "locked")
    with pytest.raises(ObjectError, match="this key") as caught:
        asyncio.run(write("locked/x"))
    assert caught.value.error_class is ErrorClass.FORBIDDEN
    refusing(monkeypatch, lambda path: path == "locked" or path.startswith("ferry-"))
    with pytest.raises(Fatal, match="this user may not write"):
        asyncio.run(write("x"))


def test_a_directory_that_went_away_is_fatal(root: Path, tmp_path: Path) -> None:
    """A destination that disappears is not created again, since it may be an unmounted disk."""
    store = open_store(f"file://{root}/", Access(), tmp_path, create=True)
    body = helpers.make_body(b"x", tmp_path)
    asyncio.run(store.put("x", body, {}))
    (root / "x").unlink()
    (root / PARTS_DIRECTORY).rmdir()
    root.rmdir()
    with pytest.raises(Fatal, match="does not exist"):
        asyncio.run(store.put("y", body, {}))
    assert not root.exists()


def test_every_answer_of_the_system_has_a_place() -> None:
    """Each errno maps to an error that is not INTERNAL, at the source and at the destination."""
    import errno

    for number in errno.errorcode:
        for side in ("destination", "source"):
            error = from_folder(OSError(number, "x"), side)
            assert isinstance(error, Fatal | ObjectError)
            if isinstance(error, ObjectError):
                assert error.error_class is not ErrorClass.INTERNAL
