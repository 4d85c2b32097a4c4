"""SIGKILL of the engine's process at seeded moments: one more run ends the job, and nothing recorded moves twice."""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.s3 import S3Server
from ferry.core.records import Status
from ferry.reconcile.finish import finish_run
from ferry.state import ledger
from ferry.state.files import DirectoryState
from tests.faults import victim
from tests.faults.amount import some
from tests.support import helpers

ROWS = 24
pytestmark = pytest.mark.slow


class World:
    """An origin with images, a bucket, a job; each life of it begins with an empty prefix and a new state."""

    def __init__(self, origin: Origin, s3: S3Server, bucket: str, folder: Path, *, dedupe: bool = False) -> None:
        """With ``dedupe`` rows have equal bodies, and the list has the digests of two thirds of them."""
        self.origin, self.s3, self.bucket, self.folder, self.dedupe = origin, s3, bucket, folder, dedupe
        self.bodies = {f"i/{n}.jpg": make_image("jpeg", n % 5 if dedupe else n, 30, 20) for n in range(ROWS)}
        lines = [
            [origin.add(f"/{key}", body), hashlib.md5(body).hexdigest() if dedupe and n % 3 else ""]
            for n, (key, body) in enumerate(self.bodies.items())
        ]
        self.list = helpers.write_list(folder / "list.csv", lines, ("url", "md5"))
        self.lives = 0

    def life(self) -> tuple[Any, DirectoryState]:
        self.lives += 1
        self.origin.requests.clear()
        job = helpers.make_job(
            manifest=str(self.list), chunk_rows=10, on_existing="overwrite", dedupe=self.dedupe,
            destination={"uri": f"s3://{self.bucket}/{self.lives}/", "endpoint_url": self.s3.endpoint_url},
        )  # fmt: skip
        return job, DirectoryState(self.folder / f"state-{self.lives}")

    def run(self, job: Any, state: DirectoryState, *point: str) -> tuple[int, dict[str, int]]:
        """The exit code of one run in a process of its own, and how often it came by each point."""
        return victim.run(self.folder, job, state, helpers.access(self.s3), *point)

    def check(self, job: Any, state: DirectoryState, what: str) -> None:
        """After the cause is gone, one plain run."""
        recorded = {outcome.key for outcome in helpers.latest(state).values() if outcome.status is Status.COPIED}
        before = dict(self.origin.requests)
        run_no = ledger.last_run_no(state) + 1
        helpers.run(job, state, helpers.access(self.s3), run_no)
        counts = finish_run(job, state, run_no)["counts"]
        assert counts["copied"] == counts["planned"] == ROWS, f"{what}: {counts}"
        assert helpers.stored(self.s3, self.bucket, f"{self.lives}/") == {
            f"{self.lives}/{key}": body for key, body in self.bodies.items()
        }, what
        again = [key for key in recorded if self.origin.requests[f"/{key}"] != before.get(f"/{key}", 0)]
        assert not again, f"{what}: {len(again)} recorded rows were fetched again"
        assert not list(state.spool_dir.glob("body-*")), what


@pytest.fixture
def world(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> World:
    return World(origin, s3, bucket, tmp_path)


def moments(reached: dict[str, int], count: int, seed: int) -> list[tuple[str, int]]:
    """``count`` moments, the points in turn, and at each a seeded one of the times that it was reached."""
    rng = random.Random(seed)
    points = sorted(reached)
    rng.shuffle(points)
    return [(point, rng.randint(1, reached[point])) for n in range(count) for point in [points[n % len(points)]]]


@pytest.mark.parametrize("dedupe", [False, True])
def test_killed_at_any_moment(
    dedupe: bool, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """80 kills (2 in the quick run), each point in turn: the next run moves what was not recorded, and that alone."""
    world = World(origin, s3, bucket, tmp_path, dedupe=dedupe)
    code, reached = world.run(*world.life())
    assert code == 0
    assert len(reached) > 25
    assert ("after copy by the server" in reached) is dedupe
    wanted, killed = some(2, 80), 0
    for point, number in moments(
        reached, 2 * wanted + 4, seed=41
    ):  # threads take turns otherwise each time: some are missed
        if killed == wanted:
            break
        job, state = world.life()
        code, _ = world.run(job, state, point, str(number))
        assert code in (0, -signal.SIGKILL), f"{point} {number}: exit {code}"
        killed += code == -signal.SIGKILL
        world.check(job, state, f"killed {point}, time {number}")
    assert killed == wanted
    tried("SIGKILL of the engine's process", killed)


def test_killed_again_and_again(world: World, tried: Callable[..., None]) -> None:
    """A run that dies every time gets further every time, and the last one ends it."""
    job, state = world.life()
    recorded = 0
    lives = some(2, 8)
    for number in range(1, lives + 1):
        world.run(job, state, "after flush", str(1 + number % 2))
        now = sum(outcome.status is Status.COPIED for outcome in helpers.latest(state).values())
        assert now > recorded or now == ROWS
        recorded = now
    world.check(job, state, "killed again and again")
    tried("SIGKILL of the engine's process, many times in one job", lives)
