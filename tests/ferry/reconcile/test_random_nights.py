"""Seeded runs with broken cells, equal bodies, new ids, truncated manifests, failing origins and stale listings."""

from __future__ import annotations

import random
import secrets
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from tests.faults.amount import some
from tests.ferry.reconcile.test_prune_needed import Listed
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.slow
DELTA: dict[str, Any] = {"delete_removed": True, "max_delete": "100%"}
KEYS = (None, "{sha256}.{ext}", "{id}/{source.name}")
BROKEN = ("", "N/A", "https://img.example/a.jpg https://img.example/b.jpg")
THINGS, NIGHTS = 30, some(5, 7)


class Random(World):
    """Things with an image and an id each, some of them in the manifest, some with a broken cell."""

    def __init__(self, seed: int, origin: Origin, s3: S3Server, bucket: str, folder: Path) -> None:
        super().__init__(origin, s3, bucket, folder)
        self.rng = random.Random(seed)
        self.key = KEYS[seed % len(KEYS)]
        self.named = self.key == KEYS[2] or self.rng.random() < 0.7  # has the list ids?
        self.names = [f"{seed}-{n}.jpg" for n in range(THINGS)]
        self.ids = {name: f"id-{name}" for name in self.names}
        self.listed = set(self.names)
        self.failing: set[str] = set()
        self.held: dict[str, bytes] = {}  # what of each thing was copied last
        self.seeds = iter(range(seed * 1000, seed * 1000 + 1000))
        for name in self.names:
            self.change(name)

    def change(self, name: str) -> None:
        """Gives a thing another image, or that of another thing."""
        bodies = list(self.bodies.values())
        equal = bool(bodies) and self.rng.random() < 0.2
        body = self.rng.choice(bodies) if equal else make_image("jpeg", next(self.seeds), 30, 20)
        self.bodies[name] = body
        self.origin.add(f"/{name}", body)

    def some(self, most: int) -> list[str]:
        return self.rng.sample(self.names, self.rng.randint(0, most))

    def by_day(self) -> None:
        for name in self.failing:
            self.origin.mend(f"/{name}")
        self.failing = set()
        for name in self.some(3):
            self.change(name)
        self.listed ^= set(self.some(3))
        for name in self.some(2):
            self.ids[name] = f"id-{secrets.token_hex(3)}"
        for name in self.some(2):
            self.origin.add(f"/{name}", self.bodies[name], fault=Trouble.SERVER_ERROR)
            self.failing.add(name)

    def rows(self, listed: list[str], broken: set[str]) -> list[list[str]]:
        address = {name: self.rng.choice(BROKEN) if name in broken else self.origin.url(f"/{name}") for name in listed}
        if not self.named:  # an empty line would be none
            return [[address[name] or "N/A"] for name in listed]
        return [[address[name], self.ids[name]] for name in listed]

    def one(self, what: str, *, whole: bool = False) -> None:
        """Runs a delta run, or another kind of run, and asserts that no needed copy was deleted."""
        listed = sorted(self.listed)
        if what == "cut":
            listed = listed[: len(listed) // 2]
        broken = set() if whole else set(self.rng.sample(listed, self.rng.randint(0, 2)))
        rows = self.rows(listed, broken)
        helpers.write_list(self.folder / "list.csv", rows, ("url", "id") if self.named else ("url",))
        before = set(helpers.stored(self.s3, self.bucket).values())
        given: dict[str, Any] = {
            "failure_budget": "40%",
            "delta": {**DELTA, "accept_shorter_manifest": whole},
            "chunk_rows": 10,
        }
        if self.key is not None:
            given["key"] = self.key
        if what in ("plan", "limit"):
            self.run_no += 1
            limit = 2 if what == "limit" else None
            helpers.plan(self.job(**given), self.state, self.run_no, server=helpers.access(self.s3), limit=limit)
        else:
            self.night(**(given if what != "full" else {**given, "mode": "full", "delta": {}}))
        after = set(helpers.stored(self.s3, self.bucket).values())
        moved = {name for name in listed if name not in broken and name not in self.failing and what == "night"}
        for name in moved:
            assert self.bodies[name] in after, (what, name)
            self.held[name] = self.bodies[name]
        for name in set(listed) - moved:
            if self.held.get(name) in before and self.held[name] not in after:
                assert self.bodies[name] in after, f"{what}: {name} is in the list, and its copy was deleted"

    def write_list(self, columns: dict[str, list[str]]) -> None:
        """Does nothing, since :meth:`one` has written the manifest."""

    def at_the_end(self) -> None:
        """Asserts that some runs without faults leave exactly the copies of the manifest's rows."""
        for name in self.failing:
            self.origin.mend(f"/{name}")
        self.failing = set()
        for _ in range(4):
            self.one("night", whole=True)
        stored = helpers.stored(self.s3, self.bucket)
        wanted = [self.bodies[name] for name in self.listed]
        assert sorted(stored.values()) == sorted(set(wanted) if self.key == KEYS[1] else wanted)


@pytest.mark.parametrize("seed", range(some(3, 60)))
def test_random_nights(seed: int, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A copy of a listed row is never deleted, and a copy of a removed row is in the end."""
    world = Random(seed, origin, s3, bucket, tmp_path)
    world.one("night", whole=True)
    for _ in range(NIGHTS):
        world.by_day()
        world.one(world.rng.choice(["night"] * 5 + ["cut", "full", "limit", "plan"]))
    world.at_the_end()


@pytest.mark.parametrize("seed", range(some(2, 30)))
def test_random_nights_of_a_listing(seed: int, tmp_path: Path) -> None:
    """Only copies whose source objects are deleted are deleted, and all of them are in the end."""
    rng = random.Random(seed)
    with OddS3(seed=seed) as server:
        world = Listed(server, tmp_path)
        delta = {**DELTA, "delete_after": rng.choice([1, 2])}
        world.night(delta=delta)
        for _ in range(6):
            live = sorted(server.objects["old"])
            for key in rng.sample(live, rng.randint(0, 2)):
                del server.objects["old"][key]
            server.hidden = set(rng.sample(world.keys, rng.randint(0, 5)))
            status = rng.choice([403, 500, 503])
            server.faults = [Fault("status", ("HeadObject",), status=status, probability=0.1 * rng.randint(0, 3))]
            world.night(delta=delta)
            assert set(server.objects["old"]) <= world.there(), "a copy was deleted whose object is there"
        server.hidden, server.faults = set(), []
        for _ in range(3):
            world.night(delta={**delta, "accept_shorter_manifest": True})
        assert world.there() == set(server.objects["old"])
