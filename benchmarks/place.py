"""The folders of the bench: `.bench/`, with a temporary folder for each invocation.

The folders of servers and contenders are in memory (`/dev/shm`) if there is room: a disk that still writes the data of
the previous run sometimes slows the store by a third, and the disk is not what is measured. Two benches may run at
once. The next bench removes the folders of a killed one, because their lock is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / ".bench"
PEERS = BENCH / "venv" / "bin"
RESULTS = BENCH / "results"
_RUNS = BENCH / "runs"
_MEMORY = Path("/dev/shm")
_MEMORY_RUNS = _MEMORY / f"ferry-bench-{os.getuid()}"


@contextlib.contextmanager
def work_folders(*, keep: bool, room: int) -> Iterator[tuple[Path, Path]]:
    """Yields two folders of this invocation, and removes them at its end unless ``keep``.

    The first is on the disk of `.bench`, for hard links to the images. The second is for all written files, ``room``
    bytes at most, and is in memory if that is at most half of the free memory.
    """
    written = _MEMORY_RUNS if 2 * room <= _free_memory() else _RUNS
    with _folder(_RUNS, keep=keep) as links, _folder(written, keep=keep) as folder:
        yield links, folder


def kind(folder: Path) -> str:
    """Returns the kind of storage of ``folder``, for the report."""
    return "memory (tmpfs)" if folder.is_relative_to(_MEMORY) else "disk"


def _free_memory() -> int:
    try:
        free = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())["MemAvailable"]
        return min(int(free.split()[0]) * 1024, shutil.disk_usage(_MEMORY).free)
    except (OSError, KeyError):
        return 0


@contextlib.contextmanager
def _folder(runs: Path, *, keep: bool) -> Iterator[Path]:
    runs.mkdir(parents=True, exist_ok=True, mode=0o700)
    _sweep(runs)
    folder = Path(tempfile.mkdtemp(dir=runs, prefix=f"{os.getpid()}-"))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def _sweep(runs: Path) -> None:
    for folder in runs.iterdir():
        lock_file = folder / ".lock"
        if not lock_file.exists():
            continue
        with lock_file.open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Returns the environment of each tool, without the user's credentials, proxies, settings and home."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "TMPDIR": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }
