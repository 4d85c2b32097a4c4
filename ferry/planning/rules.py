"""What a plan is, and the decisions in it: which rows to do and why. Pure; planner.py does the work."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ferry.core import AGAIN, Again, ErrorClass, Reason, Revalidate, Status, UserError
from ferry.job import Job
from ferry.state import ChunkRef, Plan

Mode = Literal["plain", "retry", "pass", "repair"]


@dataclass(frozen=True, slots=True)
class Latest:
    """What the ledger says of a row."""

    status: Status
    error_class: ErrorClass | None
    status_code: int | None
    by_plan: bool  # an outcome of planning: unusable, doubled, colliding
    how_same: bool  # written under the job's present `how`
    this_run: bool
    superseded: bool = False  # copied once, and another row wrote its key since
    delta: bool = False  # what is settled is looked at again, as these say:
    revalidate: Revalidate | None = None  # how; None where nothing of ours stands at the destination
    other: bool = False  # the list says that the object is another one
    due: bool = False  # a failed row may be tried again by now


def reason_to_do(
    latest: Latest | None,
    *,
    held: bool,
    mode: Mode,
    classes: Collection[str] = (),
) -> Reason | None:
    """Why a usable row goes into a new chunk, or None when it does not (SEMANTICS: plan and cache).

    ``held``: a listed chunk holds the row for an attempt that the ledger does not have yet.

    | mode | ledger | held | reason |
    |---|---|---|---|
    | plain | any | yes | none: that chunk does it |
    | plain | nothing, or an outcome of planning | no | new |
    | plain | pending (found by verify) | no | repair |
    | plain | copied, unchanged; another row wrote the key since | no | changed |
    | plain | copied, unchanged otherwise; in a delta: the list says that the object is another one | no | changed |
    | plain | copied, unchanged otherwise; in a delta: the list does not say that it is the same | no | revalidate |
    | plain | copied, unchanged otherwise | no | none |
    | plain | failed under another `how` | no | changed |
    | plain | failed, in a delta: as `delta.retry` says of its class | no | retry |
    | plain | failed, retryable | no | retry |
    | plain | failed, terminal | no | none |
    | plain | skipped under another `how`, not a duplicate | no | changed |
    | plain | skipped otherwise | no | none |
    | retry | failed, of one of ``classes`` (empty: any) | any | retry |
    | retry | anything else | any | none |
    | pass | nothing, pending, outcome of planning | yes | repair: its chunk returned without it |
    | pass | anything of an earlier run | yes | retry: likewise, and on_existing is asked |
    | pass | failed in this run, worth another try now | any | retry |
    | pass | anything else | any | none |
    | repair | as pass, but failures of this run are left alone | | |

    Where `retry` or `changed` is said of a failed row, one that failed as `upload_unconfirmed` is a `repair`: what
    stands under its key may be what arrived of our own upload, and no policy is to keep that.

    A class may be named by its name or by the status code (`404`).
    """
    ours = latest is not None and latest.error_class is ErrorClass.UPLOAD_UNCONFIRMED
    retry = Reason.REPAIR if ours else Reason.RETRY
    if mode == "retry":
        if latest is None or latest.status is not Status.FAILED or latest.by_plan:
            return None
        wanted = (
            not classes
            or latest.error_class in classes
            or (latest.status_code is not None and str(latest.status_code) in classes)
        )
        return retry if wanted else None
    if mode in ("pass", "repair"):
        if latest is None or latest.status is Status.PENDING or latest.by_plan:
            return Reason.REPAIR if held else None
        if held and not latest.this_run:
            return retry
        failed = mode == "pass" and latest.status is Status.FAILED and latest.this_run
        now = latest.error_class is not None and AGAIN[latest.error_class] is Again.NOW
        return retry if failed and now else None
    if held:
        return None
    if latest is None or latest.by_plan:
        return Reason.NEW
    if latest.status is Status.PENDING:
        return Reason.REPAIR
    if latest.status is Status.FAILED:
        if not latest.how_same:
            return Reason.REPAIR if ours else Reason.CHANGED
        again = latest.error_class is not None and AGAIN[latest.error_class] is not Again.NEVER
        return retry if (latest.due if latest.delta else again) else None
    if latest.superseded:
        return Reason.CHANGED
    if latest.status is Status.SKIPPED and not latest.how_same and latest.error_class is not ErrorClass.DUPLICATE:
        return Reason.CHANGED
    if (
        latest.delta
        and latest.status in (Status.COPIED, Status.UNCHANGED)
        and latest.revalidate not in (None, Revalidate.SKIP)
    ):
        return Reason.CHANGED if latest.other else Reason.REVALIDATE
    return None


def auto_chunk_rows(rows: int) -> int:
    """SEMANTICS: rows / 500, at least 500, at most 100,000."""
    return max(500, min(100_000, rows // 500))


def check_where(plan: Plan, job: Job) -> None:
    """Raises UserError when a setting changed that says where rows come from or go to."""
    changed = [name for name, value in job.location_digests().items() if plan.location_digests.get(name) != value]
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        raise UserError(
            f"{names} changed since this job's first run. Rows that are done would lie in the wrong place: undo the "
            "change, give the job another `state`, or plan it anew with `ferry run --replan` (nothing is deleted)"
        )


def rows_believed(rows: int, before: int, *, accept_shorter_manifest: bool) -> int:
    """How many usable rows the list is to have (Plan.believed), when it has ``rows`` and was believed to have
    ``before``.

    | rows | `delta.accept_shorter_manifest` | believed |
    |---|---|---|
    | at least nine tenths of those before | any | rows |
    | fewer: it looks cut off | no | before, until a list comes that is long enough |
    | fewer | yes | rows |
    """
    return rows if accept_shorter_manifest or not much_shorter(rows, before) else before


def cut_off(rows: int, believed: int) -> bool:
    """Does a list look cut off, when rows_believed() was asked for it already?"""
    return rows < believed


def much_shorter(rows: int, before: int) -> bool:
    """Has a list over a tenth fewer usable rows than one before it?"""
    return rows < 0.9 * before


def keep(chunk: ChunkRef, newest: int) -> bool:
    """Does a chunk stay in the plan? Base chunks always; retries while unsettled, and the newest ones."""
    return chunk.kind == "base" or chunk.done < chunk.rows or chunk.run_no == newest
