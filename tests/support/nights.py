"""Images at an origin, and a job that keeps a copy of them, night after night."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from demo.images import make_image
from demo.origin import Origin
from demo.s3 import S3Server
from ferry.core.records import Outcome
from ferry.job.model import Job
from ferry.reconcile.finish import finish_run
from ferry.reconcile.prune import PruneResult, prune_removed
from ferry.state import lease
from ferry.state.plan_file import Planned
from tests.support import helpers


class World:
    """Images at an origin, and a job that keeps a bucket equal to them."""

    def __init__(self, origin: Origin, s3: S3Server, bucket: str, folder: Path) -> None:
        self.origin, self.s3, self.bucket, self.folder = origin, s3, bucket, folder
        self.state, self.run_no = helpers.directory_state(folder), 0
        self.bodies: dict[str, bytes] = {}
        self.figures: dict[str, int] | None = None
        self.planned: Planned | None = None
        self.pruned: PruneResult | None = None

    def put(self, key: str, seed: int, **given: Any) -> None:
        self.bodies[key] = make_image("jpeg", seed, 30, 20)
        self.origin.add(f"/{key}", self.bodies[key], **given)

    def job(self, **given: Any) -> Job:
        uri = {"uri": f"s3://{self.bucket}/p/", "endpoint_url": self.s3.endpoint_url}
        given = {"mode": "delta", "manifest": str(self.folder / "list.csv"), "destination": uri, **given}
        return helpers.make_job(**given)

    def write_list(self, columns: dict[str, list[str]]) -> None:
        rows = [
            [self.origin.url(f"/{key}"), *(values[at] for values in columns.values())]
            for at, key in enumerate(self.bodies)
        ]
        helpers.write_list(self.folder / "list.csv", rows, ("url", *columns))

    def night(self, columns: dict[str, list[str]] | None = None, **given: Any) -> dict[str, Outcome]:
        """One run; the rows that it looked at, by key. ``columns``: what the list says besides the address."""
        self.write_list(columns or {})
        self.origin.requests, self.origin.bodies = Counter(), Counter()
        self.run_no += 1
        job, server = self.job(**given), helpers.access(self.s3)
        self.planned = helpers.run(job, self.state, server, self.run_no)
        self.pruned = None
        if job.delta.delete_removed:
            with lease.hold_lease(self.state, "test") as held:
                self.pruned = PruneResult(**prune_removed(job, self.state, server, server, self.run_no, held.token))
        answer = finish_run(job, self.state, self.run_no, pruned=self.pruned is not None)
        assert not answer["counts"]["pending"]
        self.figures = answer["delta"]
        latest = helpers.latest(self.state).values()
        return {outcome.key: outcome for outcome in latest if outcome.run_no == self.run_no}

    @property
    def asked(self) -> int:
        return sum(self.origin.requests.values())

    @property
    def read(self) -> int:
        return sum(self.origin.bodies.values())

    def is_true(self) -> None:
        """The bucket holds what the origin does."""
        assert helpers.stored(self.s3, self.bucket) == {f"p/{key}": body for key, body in self.bodies.items()}
