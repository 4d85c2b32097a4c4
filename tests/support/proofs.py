"""Proofs made by the library, and what other tools say about them."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ferry.core.progress import Progress
from ferry.job.model import Job
from ferry.proof import Proof, Readings, Verification, write_proof
from ferry.reconcile import verify
from ferry.reconcile.sample import EVERYTHING, draw_sample, expected_rows
from ferry.state.files import State
from ferry.state.ledger import last_run_no
from ferry.state.parquet import outcomes_of
from ferry.storage.object_info import ObjectInfo
from ferry.storage.store import Store


def prove(
    job: Job,
    state: State,
    store: Store,
    *,
    sample: str | int | None = None,
    list_only: bool = False,
    pages: Callable[[], Iterable[Sequence[ObjectInfo]]] | None = None,
    keep_lease: Callable[[], None] = lambda: None,
) -> Proof:
    """Verifies as the task does, and writes a proof."""
    started, run_no = datetime.now(UTC), last_run_no(state) + 1
    readings = Readings(state.spool_dir / "readings.csv")
    drawn = EVERYTHING if sample is None else draw_sample(state, sample, 7)
    whole = verify.Verified(0, 0, 0, 0, [])
    by: Counter[str] = Counter()
    for part, table in enumerate(expected_rows(state, 100, drawn)):
        rows = list(outcomes_of(table))
        if list_only:
            listed = {found.key: found for page in store.list() for found in page}
            found = verify.compare_with_listing(rows, listed, run_no, Progress())
        else:
            found = asyncio.run(verify.read_back(store, rows, run_no, Progress(), both=True))
        verify.note_verified(state, found, run_no, part)
        readings.add(found.readings)
        whole.checked += found.checked
        whole.bytes += found.bytes
        whole.missing += found.missing
        whole.altered += found.altered
        whole.unread += found.unread
        whole.unread_first = whole.unread_first or found.unread_first
        by.update({str(kind): count for kind, count in found.by.items()})
    done = Verification(
        "listing" if list_only else "sample" if sample else "whole", started, datetime.now(UTC), whole.checked,
        whole.bytes, whole.missing, whole.altered, whole.unread, whole.unproven, by, whole.unread_first,
        drawn.seed if sample else None, drawn.of,
    )  # fmt: skip
    return write_proof(state, job, readings.path, done, drawn, pages or store.list, keep_lease=keep_lease)


def downloaded(proof: Path, objects: Path, folder: Path) -> Path:
    """Returns the folder, a bag: the proof, with a copy of the destination as its `data/`."""
    shutil.copytree(proof, folder)
    shutil.copytree(objects, folder / "data")
    return folder


def bagit(folder: Path) -> str:
    """Returns the complaints of bagit.py, an empty text if it accepts the bag."""
    done = subprocess.run([sys.executable, "-m", "bagit", "--validate", str(folder)], capture_output=True, text=True)
    assert (done.returncode == 0) == ("is valid" in done.stderr), done.stderr
    return "" if done.returncode == 0 else done.stderr


def sums(folder: Path, algorithm: str = "sha256") -> str:
    """Returns the complaints of `sha256sum -c`, an empty text if it accepts the files."""
    command = [f"{algorithm}sum", "--check", "--strict", "--quiet", f"manifest-{algorithm}.txt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr
