"""SIGKILL in the middle of a night that copies, replaces and deletes: the next night makes the copy true."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from demo.s3 import S3Server
from ferry.state import ledger
from tests.faults import victim
from tests.faults.amount import some
from tests.faults.test_kills import moments
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.slow
DELTA: dict[str, Any] = {
    "delta": {"delete_removed": True, "max_delete": "50%", "delete_after": 1},
    "chunk_rows": 10,
    "key": "{sha256}.{ext}",
}


class Life(World):
    """A copy of 24 images, settled; and a night of which much is to be done. Its keys name digests."""

    def begin(self) -> None:
        for n in range(24):
            self.put(f"{n}.jpg", n)
        self.night(**DELTA)
        for n in range(4):
            self.put(f"new-{n}.jpg", 100 + n)
            self.put(f"{n}.jpg", 200 + n)
        del self.bodies["20.jpg"], self.bodies["21.jpg"]
        self.write_list({})

    def killed(self, *point: str) -> tuple[int, dict[str, int]]:
        """The night in a process of its own: its exit code, and how often it came by each point."""
        return victim.run(self.folder, self.job(**DELTA), self.state, helpers.access(self.s3), *point)

    def check(self, what: str) -> None:
        """One more night: each image of the list is there, and nothing else."""
        self.run_no = ledger.last_run_no(self.state)
        self.night(**DELTA)
        stored = helpers.stored(self.s3, self.bucket)
        assert sorted(stored.values()) == sorted(self.bodies.values()), what
        assert len(stored) == len(self.bodies), what
        assert not list(self.state.spool_dir.glob("body-*")), what


def test_a_night_killed_at_any_moment(origin: Origin, s3: S3Server, tmp_path: Path, tried: Callable[..., None]) -> None:
    """60 kills (1 in the quick run), those of deleting first: what the night left, the next one ends."""

    def life(number: int) -> Life:
        bucket = f"night-{secrets.token_hex(6)}"
        s3.make_bucket(bucket)
        folder = tmp_path / str(number)
        folder.mkdir()
        alive = Life(origin, s3, bucket, folder)
        alive.begin()
        return alive

    first = life(0)
    code, reached = first.killed()
    assert code == 0
    assert reached["after deletion"] == 6  # two that left the list, four that their rows left behind
    first.check("nothing was killed")
    wanted, killed = some(1, 60), 0
    deleting = {point: count for point, count in reached.items() if "deletion" in point or "prune" in point}
    turns = [*moments(deleting, (wanted + 1) // 2, seed=5), *moments(reached, 2 * wanted, seed=6)]
    for number, (point, at) in enumerate(turns, 1):
        if killed == wanted:
            break
        one = life(number)
        code, _ = one.killed(point, str(at))
        assert code in (0, -signal.SIGKILL), f"{point} {at}: exit {code}"
        killed += code == -signal.SIGKILL
        one.check(f"killed {point}, time {at}")
    assert killed == wanted
    tried("SIGKILL in a night that deletes", killed)
