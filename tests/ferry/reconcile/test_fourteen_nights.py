"""Fourteen seeded delta runs on a real origin and store, each compared with the expected objects and requests.

`pytest -s` prints the table.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from demo.validators import Validators
from ferry.core.errors import Fatal
from ferry.core.records import Checked, Outcome, Status
from ferry.reconcile.finish import finish_run
from tests.faults import victim
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.slow
DELTA: dict[str, Any] = {"delete_removed": True, "max_delete": "10%"}
FIGURES = ("rows", "new", "changed", "removed", "deleted", "failed", "requests", "least", "bodies", "least", "wrong")


class Nights(World):
    """Rows from many kinds of origins; the manifest has the ETag of every second row."""

    def __init__(self, origin: Origin, s3: S3Server, bucket: str, folder: Path, seed: int) -> None:
        super().__init__(origin, s3, bucket, folder)
        self.rng = random.Random(seed)
        self.kinds: dict[str, Validators] = {}
        self.said: set[str] = set()  # rows of which the list says the ETag
        self.seeds = iter(range(1000, 10_000))
        self.copies: dict[str, bytes] = {}  # what the destination is to hold
        self.hidden: set[str] = set()  # changed, and nothing tells of it
        self.failing: set[str] = set()
        self.missing: dict[str, int] = {}  # copies whose rows left: for how many whole lists

    # --- what happens at the origin by day

    def add(self, count: int) -> None:
        for _ in range(count):
            number = len(self.kinds)
            key = f"{number:03}.jpg"
            self.kinds[key] = list(Validators)[number // 2 % len(Validators)]
            if number % 2:
                self.said.add(key)
            self.put(key, next(self.seeds), kind=self.kinds[key])

    def change(self, count: int) -> None:
        """Changes images to others of another size and date."""
        for key in self._some(count, set(self.copies) & set(self.bodies) - self.hidden):
            seed = next(self.seeds)
            self.bodies[key] = make_image("jpeg", seed, 40 + seed % 50, 20 + len(self.bodies[key]) % 7)
            date = f"Fri, 02 Jan 2026 00:{seed // 60 % 60:02}:{seed % 60:02} GMT"
            self.origin.add(f"/{key}", self.bodies[key], kind=self.kinds[key], modified=date)

    def change_unseen(self) -> None:
        """Changes images to others of the same size, without an ETag, a date or a hint in the manifest."""
        for key in self._some(2, self._unseen()):
            body = bytearray(self.bodies[key])
            body[body.index(b"\xff\xda") + 20] ^= 1
            self.bodies[key] = bytes(body)
            self.origin.add(f"/{key}", self.bodies[key], kind=self.kinds[key])
            self.hidden.add(key)

    def _unseen(self) -> set[str]:
        return {key for key in self.copies if self.kinds[key] is Validators.NONE and key in self.bodies} - self.said

    def remove(self, count: int) -> None:
        for key in self._some(count, set(self.copies) & set(self.bodies) - self.hidden):
            del self.bodies[key]

    def fail(self, count: int) -> None:
        self.failing = set(self._some(count, set(self.copies) & set(self.bodies) - self.said - self.hidden))
        for key in self.failing:
            self.origin.add(f"/{key}", self.bodies[key], kind=self.kinds[key], fault=Trouble.SERVER_ERROR)

    def mend(self) -> None:
        for key in self.failing:
            self.origin.mend(f"/{key}")
        self.failing = set()

    def _some(self, count: int, keys: set[str]) -> list[str]:
        return self.rng.sample(sorted(keys), count)

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """Gives the manifest only the first half of its rows."""
        whole = self.bodies
        self.bodies = dict(list(whole.items())[: len(whole) // 2])
        yield
        self.bodies = whole

    # --- the night

    def expect(self, *, removals: bool = True) -> None:
        """Updates the expected copies for the next run: unseen changes, failures and kept copies stay as they are."""
        self.missing = {key: self.missing.get(key, 0) + 1 for key in self.copies if key not in self.bodies}
        kept = {key: self.copies[key] for key, lists in self.missing.items() if lists < 2 or not removals}
        still = {key: self.copies[key] for key in (*self.hidden, *self.failing)}
        self.copies = {**kept, **self.bodies, **still}

    def run_night(self, what: str, **delta: Any) -> None:
        """Runs a delta run and asserts that the destination is as expected."""
        before = helpers.by_key(self.state) if self.run_no else {}
        outcomes = self.night(self._etags(), delta={**DELTA, **delta}, chunk_rows=20)
        self._say(what, before)
        looked = {key: outcome for key, outcome in outcomes.items() if outcome.status is not Status.REMOVED}
        for key, outcome in looked.items():
            # a HEAD that told of a change, or an ETag that changes by itself: a GET follows it; a failure: a last try
            twice = outcome.status in (Status.COPIED, Status.FAILED) or outcome.checked_by is Checked.SIZE
            assert outcome.requests <= 1 + twice, (what, key, outcome)
        assert self.asked == sum(outcome.requests for outcome in looked.values()), what
        assert set(looked) == self._must_ask(before), what

    def refused_night(self, what: str) -> None:
        """Runs a delta run whose destination refuses every write."""
        job = self.job(delta=DELTA, chunk_rows=20)
        self.write_list(self._etags())
        self.origin.requests, self.origin.bodies = Counter(), Counter()
        self.run_no += 1
        before = helpers.by_key(self.state)
        with contextlib.suppress(Fatal):
            helpers.run(job, self.state, helpers.read_access(self.s3), self.run_no)
        answer = finish_run(job, self.state, self.run_no)
        assert answer["counts"]["pending"], "rows that nobody could write are to do"
        self.figures = answer["delta"]
        self._say(what, before)

    def killed_night(self, what: str, uploads: int) -> None:
        """Kills a run after some uploads and asserts that each object is the old or the new one, complete."""
        self.write_list(self._etags())
        job, server = self.job(delta=DELTA, chunk_rows=20), helpers.access(self.s3)
        code, _ = victim.run(self.folder, job, self.state, server, "after upload", str(uploads))
        assert code == -signal.SIGKILL
        self.run_no += 1
        for key, body in self._there().items():
            assert body in (self.copies.get(key), self.bodies.get(key)), key
        print(f"{what:<32}{len(self.bodies):>5}   (what it left is whole: old versions, or new ones)")

    def _etags(self) -> dict[str, list[str]]:
        return {
            "etag": [hashlib.md5(body).hexdigest() if key in self.said else "" for key, body in self.bodies.items()]
        }

    def _must_ask(self, before: Mapping[str, Outcome]) -> set[str]:
        """Returns the rows that need a request, because the manifest does not prove that they are the same."""
        return {key for key in self.bodies if key not in self.said or self._is_other(before, key)}

    def _is_other(self, before: Mapping[str, Outcome], key: str) -> bool:
        """Returns whether the ledger has another object under the key, or none."""
        known = before.get(key)
        return known is None or known.sha256 != hashlib.sha256(self.bodies[key]).hexdigest()

    def _there(self) -> dict[str, bytes]:
        return {key.removeprefix("p/"): body for key, body in helpers.stored(self.s3, self.bucket).items()}

    def _say(self, what: str, before: Mapping[str, Outcome]) -> None:
        """Prints the run's line of the table, and fails if the destination is not as expected."""
        assert self.figures is not None
        f, there = self.figures, self._there()
        must_ask = self._must_ask(before)
        must_read = sum(self._is_other(before, key) for key in must_ask)
        wrong = sum(there.get(key) != self.copies.get(key) for key in {*there, *self.copies})
        removed = f["removed"] + f["deleted"]
        done = (f["new"], f["changed"], removed, f["deleted"], f["failed"])
        figures = (len(self.bodies), *done, self.asked, len(must_ask))
        print(f"{what:<32}" + "".join(f"{value:>9}" for value in (*figures, self.read, must_read, wrong)))
        assert not wrong, what


@pytest.mark.parametrize("seed", [14])
def test_fourteen_nights(seed: int, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """After each run of changes, removals and faults the destination is right, and no request was needless."""
    w = Nights(origin, s3, bucket, tmp_path, seed)
    print(f"\n{'night':<32}" + "".join(f"{name:>9}" for name in FIGURES))
    w.add(64)
    w.expect()
    w.run_night(" 1 the first copy")
    w.run_night(" 2 nothing happened")
    w.add(3)
    w.change(5)
    w.remove(2)
    w.expect()
    w.run_night(" 3 adds, changes, removals")
    w.change(4)
    w.change_unseen()
    w.expect()
    w.run_night(" 4 changes, 2 of them unseen")
    with w.cut_off():
        w.run_night(" 5 the list is cut off")
        assert w.pruned is not None
        assert (w.pruned.deleted, "truncated" in w.pruned.refused) == (0, True)
    w.run_night(" 6 the list is whole again")
    w.hidden.clear()
    w.expect()
    w.run_night(" 7 old copies are read again", revalidate_after=0)
    w.change(3)
    w.remove(2)
    w.fail(15)
    w.expect(removals=False)
    w.run_night(" 8 a part of the origin is down")
    w.mend()
    w.expect()
    w.run_night(" 9 it is up again")
    w.add(6)
    w.change(8)
    w.remove(1)
    w.killed_night("10 killed after 25 rows", uploads=25)
    w.expect()
    w.run_night("11 the night after it")
    w.add(2)
    w.change(4)
    w.remove(2)
    w.refused_night("12 the destination refuses")
    w.expect()
    w.run_night("13 it takes writes again")
    w.add(3)
    w.change(3)
    w.change_unseen()
    w.remove(2)
    w.hidden.clear()
    w.expect()
    w.run_night("14 all of it, old ones read", revalidate_after=0)
    w.expect()
    w.run_night("15 what left goes, too")
    w.is_true()
