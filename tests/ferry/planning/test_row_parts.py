"""A plan in parts of a few rows gives what a plan of all rows at once gives, and what earlier versions gave."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ferry.core.errors import UserError
from ferry.core.records import Checked, Confirmed, ErrorClass, Outcome, Reason, Status
from ferry.job.model import Job
from ferry.planning import existing_objects, row_parts
from ferry.planning.options import Accesses, PlanOptions
from ferry.planning.planner import make_plan
from ferry.state import ledger
from ferry.state.files import DirectoryState
from ferry.state.parquet import read_table
from ferry.state.plan_file import read_plan
from ferry.storage.access import Access
from tests.support import helpers

CLASSES = [ErrorClass.NOT_FOUND, ErrorClass.SERVER_ERROR, ErrorClass.TIMEOUT, ErrorClass.UPLOAD_UNCONFIRMED]
THEN = datetime(2026, 1, 2, tzinfo=UTC)
# What the plans of a seed were before they were made in parts. Chunks are named by the digest of their bytes, which is
# part of the key under which Prefect caches their results.
BEFORE = {
    2: "9135d6be697d9feb",
    4: "cc598ee31b7793a4",
    9: "7d3691b883ab0684",
    10: "6f1fae9706c7e237",
    25: "56f393e7eeddfa10",
    40: "594d8485806b1d8e",
    47: "5ceaef1d6689a68b",  # a copy beats a failure of the same attempt since
}
TOLD = ("row_id", "status", "error_class", "message", "attempt")
WRITER = "26.0.1"  # another version of pyarrow may write other bytes


class Scenario:
    """A random job with a manifest, chunks and a ledger, and its next plan: all the same for the same seed."""

    def __init__(self, folder: Path, seed: int, *at_once: int) -> None:
        self.folder, self.at_once, self.rng = folder, at_once, random.Random(seed)
        folder.mkdir()
        self.state = DirectoryState(folder / "state")
        rng = self.rng
        there = folder / "there"
        for number in range(5):
            path = there / f"f{number}" / "a.jpg"
            path.parent.mkdir(parents=True)
            path.write_text("x" * number)
        values = {
            "name": "parts", "manifest": str(folder / "list.csv"), "mode": rng.choice(["full", "delta"]),
            "on_existing": rng.choice(["skip", "skip-same", "overwrite"]), "dedupe": rng.random() < 0.5,
            "chunk_rows": rng.choice([5, 9, 100]), "destination": {"uri": f"file://{there}/"},
        }  # fmt: skip
        self.job = Job.model_validate(values)
        self.rows = [self._row() for _ in range(rng.randrange(20, 60))]

    def _row(self) -> list[str]:
        rng = self.rng
        number = rng.randrange(400)
        key = rng.choice([f"k{number}.jpg"] * 12 + [f"f{number}/a.jpg"] * 8 + [f"f{number}", "K1.jpg", "k1.jpg"])
        source = f"https://img.example/{rng.choice([number] * 9 + [1])}.jpg" if rng.random() < 0.97 else "no address"
        md5 = rng.choice(["", hashlib.md5(str(rng.randrange(9)).encode()).hexdigest()])
        return [
            source,
            key,
            rng.choice(["", str(number)]),
            md5,
            rng.choice(["", f'"e{rng.randrange(3)}"']),
            str(number),
        ]

    def write_list(self) -> None:
        helpers.write_list(self.folder / "list.csv", self.rows, ("url", "key", "size", "md5", "etag", "id"))

    def plan(self, run_no: int, **options: Any) -> dict[str, Any]:
        """Plans, and returns all that can be seen of the plan."""
        self.write_list()
        before = set(self.state.list("outcomes"))
        try:
            options = {"run_no": run_no, **options}
            planned = make_plan(
                self.job, self.state, Accesses(Access(), Access()), PlanOptions(**options), *self.at_once
            )
        except UserError as error:
            return {"refused": str(error).replace(str(self.folder), "")}
        assert not [path.name for path in self.state.spool_dir.glob("*") if any(path.rglob("*")) or path.is_file()]
        hints = {chunk.digest: self._hints(chunk.hints) for chunk in planned.chunks if chunk.hints}
        seen = dataclasses.asdict(planned)
        for chunk in seen["chunks"]:
            del chunk["hints"], chunk["settled"]
        plan = read_plan(self.state)
        new = sorted(set(self.state.list("outcomes")) - before)
        told = [line for name in new for line in read_table(self.state.local(name)).to_pylist()]
        result: dict[str, Any] = json.loads(json.dumps({
            **seen, "hints": hints, "in plan": [chunk.digest for chunk in plan.chunks] if plan else [],
            "told": [[line[name] for name in TOLD] for line in told],
        }).replace(str(self.folder), ""))  # fmt: skip
        return result

    def _hints(self, name: str) -> list[Any]:
        lines = read_table(self.state.local(name)).to_pylist()
        for line in lines:
            if line["done"]:
                line["dest_size"] = line["dest_etag"] = None  # nothing reads them
        return sorted(json.dumps(line, default=str) for line in lines)

    def settle(self, run_no: int) -> None:
        """Writes outcomes for some rows of the plan's chunks, as a run that was killed."""
        plan = read_plan(self.state)
        assert plan is not None
        for part, chunk in enumerate(plan.chunks):
            rows = helpers.chunk_rows(self.state, chunk)
            share = self.rng.choice([0, 0.5, 1, 1])
            outcomes = [self._outcome(row, run_no, chunk.digest) for row in rows if self.rng.random() < share]
            ledger.append_outcomes(self.state, outcomes, run_no, chunk.digest, part)

    def _outcome(self, row: Any, run_no: int, chunk: str) -> Outcome:
        rng = self.rng
        status = rng.choice([Status.COPIED] * 5 + [Status.FAILED, Status.FAILED, Status.SKIPPED, Status.PENDING])
        md5 = hashlib.md5((row.md5 or row.row_id).encode()).hexdigest()
        given: dict[str, Any] = {
            "key": row.key, "source": row.source, "attempt": row.attempt, "reason": Reason(row.reason),
            "run_no": run_no, "chunk": chunk, "recorded_at": THEN + timedelta(days=run_no, seconds=rng.randrange(9)),
            "started_at": THEN, "settings_digest": rng.choice([self.job.settings_digest()] * 4 + ["other"]),
        }  # fmt: skip
        if status is Status.FAILED:
            given |= {"error_class": rng.choice(CLASSES), "dest_etag": rng.choice([None, "d"])}
        if status is Status.COPIED:
            given |= {
                "md5": row.md5 or md5, "sha256": md5 * 2, "size": row.size or 7, "dest_etag": "d", "id": row.id,
                "content_type": "image/jpeg", "source_etag": rng.choice([None, '"e1"']), "confirmed": Confirmed.DIGEST,
                "checked_by": Checked.BODY, "copy_of": rng.choice([None] * 9 + [row.key]),
            }  # fmt: skip
        return helpers.make_outcome(row.row_id, status, **given)

    def change(self) -> None:
        """Removes, adds and changes rows of the manifest."""
        rng = self.rng
        self.rows = [row for row in self.rows if rng.random() < 0.93] + [self._row() for _ in range(rng.randrange(6))]
        for row in rng.sample(self.rows, 4):
            row[2:5] = self._row()[2:5]

    def story(self) -> list[dict[str, Any]]:
        seen = [self.plan(1)]
        if "refused" in seen[0]:
            return seen
        for run_no in (2, 3):
            self.settle(run_no - 1)
            if run_no == 3 and self.rng.random() < 0.5:
                ledger.compact_ledger(self.state, 2)
            self.change()
            asked: dict[str, Any] = self.rng.choice(
                [{}, {}, {"limit": 4}, {"limit": 6, "at_random": True}, {"dry": True}]
            )
            if run_no == 3:
                asked = self.rng.choice(
                    [asked, {"mode": "retry"}, {"mode": "retry", "classes": ["timeout"], "limit": 2}]
                )
            seen.append(self.plan(run_no, **asked))
            if "refused" in seen[-1]:
                break
        plan = read_plan(self.state)
        returned = [chunk.digest for chunk in plan.chunks[::2]] if plan else []
        return [*seen, self.plan(3, mode="pass", returned=returned)]


def digest(story: Sequence[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(story, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.slow  # a few seconds of processor time each
@pytest.mark.parametrize("seed", BEFORE)
def test_parts_give_what_the_whole_gives(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reasons, chunks, counts, hints, notes and outcomes of a plan do not depend on how many rows are joined at once,
    and are those of earlier versions."""
    monkeypatch.setattr(existing_objects, "MAX_HEADS", 3)
    whole = Scenario(tmp_path / "whole", seed).story()
    assert Scenario(tmp_path / "parts", seed, 7).story() == whole
    if pa.__version__ == WRITER:
        assert digest(whole) == BEFORE[seed]


def test_each_span_of_a_first_plan_begins_with_freed_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the span before has left is given back."""
    released: list[Any] = []
    monkeypatch.setattr(row_parts, "release_freed", released.append)
    scenario = Scenario(tmp_path / "site", 1, 7)
    scenario.plan(1)
    assert len(released) >= len(scenario.rows) / 7


def test_a_refused_plan_leaves_nothing_in_the_spool(tmp_path: Path) -> None:
    """Parts that were written for the joins are deleted if a chunk file turns out to be damaged."""
    scenario = Scenario(tmp_path / "parts", 4, 7)
    digests = scenario.plan(1)["in plan"]
    scenario.state.write(f"chunks/{digests[-1]}.parquet", b"not Parquet")
    assert "missing or damaged" in scenario.plan(2, mode="pass", returned=digests)["refused"]
    assert not [path for path in scenario.state.spool_dir.rglob("*") if path.is_file()]
