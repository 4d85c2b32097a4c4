"""Where the bench puts things: `.bench/`, with a folder for each invocation that goes with it.

Two may run at once. What a killed one left is removed by the next, which sees that nobody holds its lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".bench"
PEERS = BENCH / "venv" / "bin"
RESULTS = BENCH / "results"
_RUNS = BENCH / "runs"


@contextlib.contextmanager
def work_folder(*, keep: bool) -> Iterator[Path]:
    """A folder of this invocation's own, removed at its end unless ``keep``."""
    _RUNS.mkdir(parents=True, exist_ok=True)
    _sweep()
    folder = Path(tempfile.mkdtemp(dir=_RUNS, prefix=f"{os.getpid()}-"))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    for folder in _RUNS.iterdir():
        lock_file = folder / ".lock"
        if not lock_file.exists():
            continue
        with lock_file.open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What every tool gets: no credentials, proxies, settings or home of the user's."""
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
