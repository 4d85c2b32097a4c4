"""The verification tasks, one run of which reads one part of the ledger's objects."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from ferry.core import Fatal, Outcome, Progress
from ferry.cutover import PublicReport, check_public, create_addresses
from ferry.images import kind_of_type
from ferry.job import Checks, Job
from ferry.planning import check_locations
from ferry.proof import Proof, Readings, write_proof
from ferry.proof import Verification as Done
from ferry.reconcile import (
    EVERYTHING,
    Evidence,
    Sample,
    Verified,
    beside_listing,
    compare_with_listing,
    count_expected,
    draw_sample,
    expected_rows,
    note_verified,
    read_back,
)
from ferry.state import Lease, State, folded_ledger, hold_lease, last_run_no, outcomes_of, read_plan, write_end
from ferry.storage import Store, open_store, run_preflight
from ferry.transfer import lesser_check_of
from tasks import secrets, state_location
from tasks.run import clean_spool
from tasks.state_location import state_of

PART_ROWS = 5_000


@dataclass(slots=True)
class Verification:
    """A running verification; its counts add up over its parts."""

    state: State
    destination: Store
    lease: Lease
    run_no: int
    checks: Checks = Checks.IMAGE
    sample: Sample = EVERYTHING
    progress: Progress = field(default_factory=Progress)
    checked: int = 0
    bytes: int = 0
    missing: int = 0
    altered: int = 0
    by: Counter[Evidence] = field(default_factory=Counter)
    right_again: int = 0
    unproven: int = 0
    unread: int = 0
    unread_first: str = ""
    parts_done: int = 0
    readings: Readings | None = None  # of a verification that ends in a proof
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def add(self, result: Verified) -> None:
        """Write wrong objects, and objects that are right again, to the ledger, and add the counts.

        Raises Fatal if another run has taken the lease.
        """
        self.keep_lease()
        note_verified(self.state, result, self.run_no, self.parts_done)
        if self.readings is not None:
            self.readings.add(result.readings)
        self.parts_done += 1
        self.checked += result.checked
        self.bytes += result.bytes
        self.missing += result.missing
        self.altered += result.altered
        self.by += result.by
        self.right_again += len(result.right_again)
        self.unproven += result.unproven
        self.unread += result.unread
        self.unread_first = self.unread_first or result.unread_first

    def keep_lease(self) -> None:
        """Raises Fatal if another run has taken the lease: this one must not write any more."""
        if not self.lease.regain():
            raise Fatal("another run has taken the lease on the state; this verification ends without more outcomes")

    def lesser_check(self, outcome: Outcome) -> str | None:
        """Which check the row's body got, if that is less than the job's ``checks``."""
        return lesser_check_of(kind_of_type(outcome.content_type), self.checks)

    def end(self) -> None:
        """Record the end in the state, if outcomes were written: they have a run number of their own."""
        if self.missing or self.altered or self.right_again:
            write_end(
                self.state, self.run_no, f"{'Completed' if self.proven else 'Failed'}: ferry verify: {self.message}"
            )

    @property
    def proven(self) -> bool:
        """Whether every object was compared and equals its entry in the ledger."""
        return not (self.missing or self.altered or self.unread or self.unproven)

    @property
    def counts(self) -> dict[str, int]:
        """The counts of the event `ferry.run.ended`: objects compared, not proved, and to be repaired."""
        wrong = self.missing + self.altered
        failed = wrong + self.unread + self.unproven
        return {"planned": self.checked + self.unread, "failed": failed, "pending": wrong, "bytes": self.bytes}

    @property
    def sample_words(self) -> str:
        """How many objects the sample has, and its seed."""
        return f"{self.checked:,} of {self.sample.of:,} objects read, a sample with the seed {self.sample.seed}"

    @property
    def compared_words(self) -> str:
        """How the objects were compared: `28 by ETag, 2 by size alone`."""
        words = {
            Evidence.DIGEST: "by digest",
            Evidence.ETAG: "by ETag",
            Evidence.SIZE: "by size alone",
        }
        return ", ".join(f"{self.by[kind]:,} {text}" for kind, text in words.items() if self.by[kind]) or "none"

    @property
    def message(self) -> str:
        """The result in sentences, for the flow run's state."""
        wrong = self.missing + self.altered
        drawn = self.sample is not EVERYTHING
        text = f"{self.checked:,} objects at the destination match the ledger: {self.compared_words}"
        if drawn:
            text = f"all objects read match the ledger ({self.sample_words}): {self.compared_words}"
        if wrong:
            text = (
                f"{wrong:,} of {self.checked:,} objects do not match the ledger: {self.missing:,} missing, "
                f"{self.altered:,} altered{f' ({self.sample_words})' if drawn else ''}. "
                f"Compared: {self.compared_words}. The next run repairs them"
            )
        if self.right_again:
            text += f". {self.right_again:,} found wrong by an earlier verification now match the ledger"
        if self.unproven:
            text += (
                f". {self.unproven:,} of them were wrong in an earlier verification, and their sizes and ETags are not "
                "proof: the next run writes them again, unless `ferry verify` without `--list` confirms them first"
            )
        if self.unread:
            text += f". {self.unread:,} more objects could not be read ({self.unread_first}): verify again"
        return text


@contextlib.contextmanager
def open_check(
    job: Job, name: str, flow_run: str = "", warn: Callable[[str], None] = lambda _: None, *, wait: bool = False
) -> Iterator[Verification]:
    """Open a verification under the lease, since it writes outcomes.

    Raises UserError for unusable settings, and LeaseHeld if another run holds the lease and ``wait`` is false.
    """
    state_location.refuse_lost_state(str(job.state))
    access = secrets.destination_access(job)
    run_preflight(job.destination.uri, access)
    state = state_of(job, access)
    if plan := read_plan(state):
        check_locations(plan, job)
    with hold_lease(state, name, flow_run=flow_run, wait=wait, tell=warn) as lease:
        clean_spool(state)
        store = open_store(job.destination.uri, access, state.spool_dir)
        check = Verification(state, store, lease, last_run_no(state) + 1, job.checks)
        try:
            yield check
        finally:
            if check.readings is not None:
                check.readings.path.unlink(missing_ok=True)


def begin_proof(check: Verification, job: Job) -> None:
    """Have the verification note what a proof needs. Raises UserError if `public_url` gives two keys one address."""
    if job.public_url is not None:
        with folded_ledger(check.state) as con:
            create_addresses(con, job)
    check.readings = Readings(check.state.spool_dir / "readings.csv")


def draw(check: Verification, sample: str | int, seed: int | None) -> None:
    """Draw the sample of objects to read, instead of all."""
    check.sample = draw_sample(check.state, sample, seed)


def parts(check: Verification) -> Iterator[pa.Table]:
    """Sets the total of the progress, and yields the outcomes of each part to read."""
    check.progress.start(count_expected(check.state, check.sample))
    yield from expected_rows(check.state, PART_ROWS, check.sample)


@task(name="verify-part", cache_policy=NO_CACHE, persist_result=False)
def read_part(check: Verification, part: pa.Table) -> int:
    """Download a part's objects and compare their digests. Returns how many were wrong."""
    outcomes = sorted(outcomes_of(part), key=attrgetter("key"))  # neighbours in a folder, one after the other

    async def read() -> Verified:
        try:
            return await read_back(
                check.destination, outcomes, check.run_no, check.progress, check.lesser_check,
                both=check.readings is not None,
            )  # fmt: skip
        finally:
            await check.destination.disconnect()

    result = asyncio.run(read())
    check.add(result)
    return len(result.wrong)


@task(name="verify-listing", cache_policy=NO_CACHE, persist_result=False)
def compare_listing(check: Verification) -> int:
    """Compare the sizes and ETags of a complete listing. Returns how many objects were wrong."""
    check.progress.start(count_expected(check.state))
    wrong = 0
    for outcomes, listed in beside_listing(check.state, check.destination.list(), PART_ROWS):
        result = compare_with_listing(outcomes, listed, check.run_no, check.progress)
        check.add(result)
        wrong += len(result.wrong)
    return wrong


@task(name="verify-public", cache_policy=NO_CACHE, persist_result=False)
def ask_public(job: Job, progress: Progress, sample: str | int | None, seed: int | None) -> PublicReport:
    """Ask for the public addresses of all copies or of a sample. No lease: the ledger stays as it is."""
    state_location.refuse_lost_state(str(job.state))
    access = secrets.destination_access(job)
    return check_public(job, state_of(job, access), access.network, progress, sample, seed)


@task(name="write-proof", cache_policy=NO_CACHE, persist_result=False)
def make_proof(check: Verification, job: Job, flow_run: str, *, list_only: bool) -> Proof:
    """Write the proof of a verification that has ended into the state."""
    assert check.readings is not None
    check.keep_lease()
    drawn = check.sample is not EVERYTHING
    done = Done(
        "listing" if list_only else "sample" if drawn else "whole",
        check.started_at, datetime.now(UTC), check.checked, check.bytes, check.missing, check.altered, check.unread,
        check.unproven, {str(kind): count for kind, count in check.by.items()}, check.unread_first,
        check.sample.seed if drawn else None, check.sample.of,
    )  # fmt: skip
    return write_proof(
        check.state, job, check.readings.path, done, check.sample, check.destination.list, flow_run, check.keep_lease
    )
