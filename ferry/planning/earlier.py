"""What earlier plans left in the state, and what is to be believed of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ferry.core import Damaged
from ferry.job import Job
from ferry.planning.collisions import ProblemCounts
from ferry.planning.options import PlanOptions
from ferry.planning.rules import check_locations
from ferry.state import (
    LOCATION_FILE,
    PLAN_FILE,
    REPLAN,
    ChunkRef,
    Plan,
    PlanLocation,
    State,
    is_intact,
    ledger_files,
    read_location,
    read_plan,
    refuse_lost_ledger,
)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier plans left: the plan in force, its intact chunks, since which run outcomes count, expected rows."""

    plan: Plan | None
    chunks: list[ChunkRef]
    since_run: int
    expected_rows: int

    def compared(self, counts: ProblemCounts) -> tuple[int, int]:
        """Returns the rows of the manifest and of the last one, counted alike."""
        if self.plan is None:
            return counts.usable, self.expected_rows
        if not self.plan.usable:  # an earlier Ferry counted all rows, unusable ones and duplicates included
            return counts.rows, self.expected_rows
        return counts.usable, self.plan.usable


def read_earlier(job: Job, state: State, options: PlanOptions, notes: list[str]) -> Earlier:
    """Reads what earlier plans left in the state. Raises UserError, Damaged and NewerVersion.

    The modes pass and repair take their plan's chunks as they are; for any other, rows of damaged chunks are in none.
    """
    plan = _plan_in_force(job, state, notes)
    if plan is not None:
        check_locations(plan, job)
    refuse_lost_ledger(state)
    if plan is None:
        return Earlier(None, [], _since_run(job, state, options.run_no), _expected_rows(job, state))
    chunks = plan.chunks if options.mode in ("pass", "repair") else _intact(state, plan.chunks, notes)
    return Earlier(plan, chunks, plan.since_run, plan.expected_rows or plan.rows)


def _plan_in_force(job: Job, state: State, notes: list[str]) -> Plan | None:
    """Returns the plan, or None for no plan and for a damaged or missing one that can be made again.

    It can be made again if location.json shows that the ledger's outcomes belong to the job's present location.
    Raises Damaged if it does not, and NewerVersion.
    """
    problem = "is missing"
    try:
        plan = read_plan(state)
    except Damaged:
        plan, problem = None, "is damaged"
    if plan is not None or REPLAN in state.list("plan"):
        return plan
    if not ledger_files(state) and problem == "is missing":
        return None
    location = _location(state)
    if location is None or location.location_digests != job.location_digests():
        raise Damaged(
            f"{PLAN_FILE} in the state {problem}, and {LOCATION_FILE} does not show that earlier runs used the "
            "source and destination of this job. Restore it, undo the change of the job, or run `ferry run "
            "--replan` (nothing is deleted)"
        )
    notes.append(f"{PLAN_FILE} {problem}: planned again from the manifest and the ledger")
    return None


def _location(state: State) -> PlanLocation | None:
    with contextlib.suppress(Damaged):
        return read_location(state)
    return None


def _since_run(job: Job, state: State, run_no: int) -> int:
    """Returns since which run outcomes count, for a plan without a predecessor.

    After a `--replan` to another location no earlier outcome counts. None does either if the earlier location is
    not known, so that all rows are rechecked.
    """
    location = _location(state)
    if location is None:
        return run_no if ledger_files(state) else 0
    same = location.location_digests == job.location_digests()
    return location.since_run if same else run_no


def _expected_rows(job: Job, state: State) -> int:
    """Returns the expected rows for a plan without a predecessor: a `--replan` must not accept a short manifest."""
    location = _location(state)
    if location is None or location.location_digests != job.location_digests():
        return 0
    return location.expected_rows


def _intact(state: State, chunks: Sequence[ChunkRef], notes: list[str]) -> list[ChunkRef]:
    """Returns the chunks with intact files. Rows of the others are in no chunk any more, and are planned again."""
    kept = [chunk for chunk in chunks if is_intact(state, chunk.uri)]
    if len(kept) < len(chunks):
        lost = sorted({chunk.uri for chunk in chunks} - {chunk.uri for chunk in kept})
        notes.append(
            f"{len(lost):,} chunk files were damaged or missing ({lost[0]}"
            f"{', ...' if len(lost) > 1 else ''}): their rows that are to do go to new chunks"
        )
    return kept
