"""Verifying as tasks: one task run reads one part of the ledger's objects back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prefect import task
from prefect.cache_policies import NO_CACHE

from ferry.core import Fatal, Progress, UserError
from ferry.job import Job
from ferry.planning import check_locations
from ferry.reconcile import (
    EVERYTHING,
    Evidence,
    Sample,
    Verified,
    compare_with_listing,
    draw_sample,
    expected_objects,
    note_verified,
    read_back,
    sample_rows,
    verify_parts,
)
from ferry.state import Lease, State, hold_lease, last_run_no, read_plan
from ferry.storage import Store, open_store, run_preflight
from tasks import secrets, state_location, task_count
from tasks.run import state_of

PART_ROWS = 5_000


@dataclass(slots=True)
class Check:
    """A verification under way; counts add up over its parts."""

    state: State
    destination: Store
    lease: Lease
    run_no: int
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

    def add(self, result: Verified) -> None:
        """Writes what is wrong, and what is right again, to the ledger. Raises Fatal when another run has taken the
        lease meanwhile."""
        if not self.lease.regain():
            raise Fatal("this verification lost its lease on the state to another run; it writes nothing more")
        note_verified(self.state, result, self.run_no, self.parts_done)
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

    @property
    def proven(self) -> bool:
        """Was every object compared, and is none other than the ledger says?"""
        return not (self.missing or self.altered or self.unread or self.unproven)

    @property
    def sample_words(self) -> str:
        return f"{self.checked:,} of {self.sample.of:,} objects read, a sample with the seed {self.sample.seed}"

    @property
    def compared_words(self) -> str:
        """What the objects were compared by: `28 by ETag, 2 by size alone`."""
        words = {
            Evidence.DIGEST: "by digest",
            Evidence.ETAG: "by ETag",
            Evidence.SIZE: "by size alone",
        }
        return ", ".join(f"{self.by[kind]:,} {text}" for kind, text in words.items() if self.by[kind]) or "none"

    @property
    def message(self) -> str:
        wrong = self.missing + self.altered
        drawn = self.sample is not EVERYTHING
        text = f"{self.checked:,} objects are at the destination as the ledger says: {self.compared_words}"
        if drawn:
            text = f"all that were read are as the ledger says ({self.sample_words}): {self.compared_words}"
        if wrong:
            text = (
                f"{wrong:,} of {self.checked:,} objects are not as the ledger says: {self.missing:,} missing, "
                f"{self.altered:,} altered{f' ({self.sample_words})' if drawn else ''}. "
                f"Compared: {self.compared_words}. The next run repairs them"
            )
        if self.right_again:
            text += f". {self.right_again:,} that an earlier verification found wrong are right"
        if self.unproven:
            text += (
                f". {self.unproven:,} of them an earlier verification found wrong, and sizes and ETags do not prove "
                "that they are right: the next run writes them again, unless `ferry verify` without `--list` finds "
                "them right"
            )
        if self.unread:
            text += f". {self.unread:,} more could not be read ({self.unread_first}): verify again"
        return text


def check_choice(list_only: bool, sample: str | int | None, seed: int | None) -> None:
    """Raises UserError for what cannot be asked for together."""
    if list_only and sample is not None:
        raise UserError("a listing compares every object at no cost; leave out the sample, or the listing")
    if seed is not None and sample is None:
        raise UserError("a seed is a sample's; say how large that was, too (`1%`, `500`)")
    if sample is not None:
        sample_rows(sample, 0)


@contextlib.contextmanager
def open_check(
    job: Job, name: str, flow_run: str = "", tell: Callable[[str], None] = lambda _: None, *, wait: bool = False
) -> Iterator[Check]:
    """Takes the lease: a verification writes outcomes. Raises UserError, and LeaseHeld unless it is to ``wait``."""
    state_location.refuse_lost_state(str(job.state))
    access = secrets.destination_access(job)
    run_preflight(job.destination.uri, access)
    state = state_of(job)
    if plan := read_plan(state):
        check_locations(plan, job)
    with hold_lease(state, name, flow_run=flow_run, wait=wait, tell=tell) as lease:
        store = open_store(job.destination.uri, access, state.spool_dir)
        yield Check(state, store, lease, last_run_no(state) + 1)


def draw(check: Check, sample: str | int, seed: int | None) -> None:
    """From now on a sample of the objects is read, and not all."""
    check.sample = draw_sample(check.state, sample, seed)


def parts(check: Check) -> list[tuple[str, str]]:
    """What is to be read, cut into parts."""
    rows, bounds = verify_parts(check.state, PART_ROWS, check.sample)
    check.progress.start(rows)
    return bounds


@task(name="verify-part", cache_policy=NO_CACHE, persist_result=False)
def read_part(check: Check, bounds: tuple[str, str]) -> int:
    """Downloads a part's objects and compares their digests; returns how many were wrong."""
    task_count.one()
    outcomes = expected_objects(check.state, bounds, check.sample)
    result = asyncio.run(read_back(check.destination, outcomes, check.run_no, check.progress))
    check.add(result)
    return len(result.wrong)


@task(name="verify-listing", cache_policy=NO_CACHE, persist_result=False)
def compare_listing(check: Check, bounds: list[tuple[str, str]]) -> int:
    """Compares sizes and ETags from a listing of the whole destination; reads no object."""
    task_count.one()
    listed = {found.key: found for page in check.destination.list() for found in page}
    wrong = 0
    for part in bounds:
        result = compare_with_listing(expected_objects(check.state, part), listed, check.run_no, check.progress)
        check.add(result)
        wrong += len(result.wrong)
    return wrong
