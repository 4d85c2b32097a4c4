"""Random lists with equal bytes, stores with faults, objects that others change: every row has its own bytes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin, Trouble
from ferry.core.errors import UserError
from ferry.core.records import Outcome, Status
from ferry.images import sniff
from tests.faults.amount import some
from tests.servers.odd_s3 import Fault, OddS3, Stored, What
from tests.support import helpers

pytestmark = pytest.mark.slow
IMAGES = [*(make_image("jpeg", n, 30, 20) for n in range(3)), make_image("png", 1, 20, 20)]
TEXTS = [b"text one", b"text two, longer"]
FAULTS: tuple[What, ...] = ("status", "lost answer", "reset", "error in 200")
OPERATIONS = ("CopyObject", "CopyObject", "PutObject", "HeadObject", "GetObject", "DeleteObject")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the list, and what its source sends."""

    url: str
    md5: str
    sha256: str
    size: str
    content_type: str
    body: bytes
    sent_type: str
    claims_are_wrong: bool


class Life:
    """One job on a store that misbehaves; ``seed`` decides everything."""

    def __init__(self, seed: int, origin: Origin, server: OddS3, folder: Path) -> None:
        self.seeded, self.server, self.folder = random.Random(seed), server, folder
        server.make_bucket("b")
        choose = self.seeded.choice
        checks = choose(["image", "image", "length", "none", "decode"])
        bodies = self.seeded.sample(IMAGES, 3) + (TEXTS if checks in ("length", "none") else [])
        self.key = choose([None, None, "{md5}.jpg", "{sha256}.{ext}", "{sha256}"])
        self.lines = [self._line(origin, f"/{seed}/{n}.bin", choose(bodies)) for n in range(self.seeded.randint(2, 40))]
        self.state = helpers.directory_state(folder, f"state-{seed}")
        self.changed: set[str] = set()  # keys of which another program changed the object
        self.run_no = 0
        self.given = {
            "destination": {"uri": "s3://b/p/", "cache_control": "max-age=1", "metadata": {"owner": "x"}},
            "manifest": str(folder / "list.csv"), "dedupe": True, "checks": checks, "key": self.key,
            "on_existing": choose(["skip-same", "skip-same", "overwrite", "skip", "fail"]),
            "chunk_rows": choose([3, 7, "auto"]), "concurrency": choose([1, 8, "auto"]),
            "retries": {"attempts": 2, "backoff_s": 0.01, "max_backoff_s": 0.1},
        }  # fmt: skip

    def _line(self, origin: Origin, path: str, body: bytes) -> Line:
        choose = self.seeded.choice
        sent_type = choose(["image/jpeg", "text/plain"])
        trouble = choose([None] * 8 + [Trouble.NOT_FOUND, Trouble.FLAKY, Trouble.RESET])
        claims = choose(["md5", "md5", "both"] if self.key == "{md5}.jpg" else ["", "md5", "md5", "sha256", "both"])
        wrong = bool(claims) and self.seeded.random() < 0.05
        claimed = body + path.encode() if wrong else body
        return Line(
            origin.add(path, body, sent_type, fault=trouble),
            hashlib.md5(claimed).hexdigest() if claims in ("md5", "both") else "",
            hashlib.sha256(claimed).hexdigest() if claims in ("sha256", "both") else "",
            choose(["", str(len(body))]), choose(["", "", "text/x-list"]), body, sent_type, wrong,
        )  # fmt: skip

    def run(self, lines: int) -> None:
        columns = ("url", "md5", "sha256", "size", "content_type")
        listed = [[getattr(line, name) for name in columns] for line in self.lines[:lines]]
        helpers.write_list(self.folder / "list.csv", listed, columns)
        self.run_no += 1
        helpers.run(helpers.make_job(**self.given), self.state, helpers.access(self.server), self.run_no)

    def break_store(self) -> None:
        for _ in range(self.seeded.randint(0, 3)):
            self.server.faults.append(
                Fault(self.seeded.choice(FAULTS), (self.seeded.choice(OPERATIONS),), after=self.seeded.randint(0, 6),
                      times=self.seeded.randint(1, 4), status=self.seeded.choice([500, 503, 404, 412]))
            )  # fmt: skip

    def change_an_object(self) -> None:
        """Another program writes an object, perhaps the same bytes with other attributes under the same ETag."""
        objects = self.server.objects["b"]
        if objects:
            key = self.seeded.choice(sorted(objects))
            old = objects[key]
            data, etag = self.seeded.choice([(old.data, old.etag), (IMAGES[0], self.server._etag(IMAGES[0]))])
            objects[key] = Stored(data, etag, {"Content-Type": "changed"}, datetime.now(UTC) + timedelta(minutes=2))
            self.changed.add(key.removeprefix("p/"))

    def check(self) -> int:
        """Compares each stored row with its source, and returns how many dedupe saved a transfer."""
        by_source = {line.url: line for line in self.lines}
        outcomes = helpers.latest(self.state).values()
        for outcome in outcomes:
            if outcome.status in (Status.COPIED, Status.UNCHANGED) and outcome.key not in self.changed:
                self._check_row(outcome, by_source[outcome.source])
        counts = helpers.counts_of(self.state)
        counts.check()
        assert counts.planned == len(self.lines)
        return counts.deduped.get("rows", 0)

    def _check_row(self, outcome: Outcome, line: Line) -> None:
        found = self.server.objects["b"][f"p/{outcome.key}"]
        assert found.data == line.body, outcome
        assert not line.claims_are_wrong, outcome
        headers = {name.lower(): value for name, value in found.headers.items()}
        assert (headers.get("cache-control"), headers.get("x-amz-meta-owner")) == ("max-age=1", "x"), outcome
        kind = sniff(line.body)
        if self.key is None:  # rows that share a key may differ in the type that the list or the source has
            assert headers["content-type"] == (kind.mime if kind else line.content_type or line.sent_type), outcome


def test_every_row_has_its_own_bytes(origin: Origin, tmp_path: Path, tried: Callable[..., None]) -> None:
    """300 lists (5 in the quick run): bytes, attributes and claims are those of a job without dedupe."""
    lives, saved = some(5, 300), 0
    for seed in range(lives):
        seeded = random.Random(seed)
        sort: Any = {
            "etags": seeded.choice(["md5"] * 6 + ["kms", "opaque", "none", "upper"]),
            "conditions": seeded.choice(["kept", "kept", "kept", "ignored"]),
            "copies": seeded.choice(["whole"] * 5 + ["without attributes", "altered"]),
        }
        folder = tmp_path / str(seed)
        folder.mkdir()
        with OddS3(**sort, checksums=seeded.random() < 0.5, seed=seed) as server:
            life = Life(seed, origin, server, folder)
            try:
                for _ in range(seeded.randint(0, 2)):
                    life.break_store()
                    life.run(seeded.randint(1, len(life.lines)))
                    server.faults.clear()
                    if seeded.random() < 0.4:
                        life.change_an_object()
                life.run(len(life.lines))
                saved += life.check()
            except UserError as refused:
                assert "key collision" in str(refused)
    assert saved > lives
    tried("random lists with equal bytes, and stores with faults", lives)
