"""Decisions of planning as pure functions: which rows are to be done and why, chunk sizes, short manifests."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from ferry.core import AGAIN, Again, ErrorClass, Reason, Revalidate, Status, UserError
from ferry.job import Job
from ferry.state import ChunkRef, Plan

Mode = Literal["plain", "retry", "pass", "repair"]


@dataclass(frozen=True, slots=True)
class Latest:
    """What the ledger says of a row, and what a delta run adds to it."""

    status: Status
    error_class: ErrorClass | None
    status_code: int | None
    by_plan: bool  # an outcome without a chunk: a duplicate, a collision, an unusable or a removed row
    same_settings: bool  # recorded under the job's present settings digest
    this_run: bool
    superseded: bool = False  # the row was copied, and another row has written its key since
    delta: bool = False  # in a delta run, the next three fields count
    revalidate: Revalidate | None = None  # how the copy is rechecked; None for a row without a copy
    other: bool = False  # the manifest says that the object has changed
    due: bool = False  # `delta.retry` allows another try of the failed row now


@dataclass(frozen=True, slots=True)
class _Case:
    """The arguments of one decision, and the conditions that the rules are made of."""

    latest: Latest | None
    held: bool
    classes: Collection[str]

    @property
    def new(self) -> bool:
        return self.latest is None or self.latest.by_plan

    @property
    def pending(self) -> bool:
        return self.latest is not None and self.latest.status is Status.PENDING

    @property
    def failed(self) -> bool:
        return self.latest is not None and self.latest.status is Status.FAILED

    @property
    def this_run(self) -> bool:
        return self.latest is not None and self.latest.this_run

    @property
    def other_settings(self) -> bool:
        return self.latest is not None and not self.latest.same_settings

    @property
    def superseded(self) -> bool:
        return self.latest is not None and self.latest.superseded

    @property
    def skipped_as_existing(self) -> bool:
        """Whether `on_existing` skipped the row, and not planning as a duplicate."""
        skipped = self.latest is not None and self.latest.status is Status.SKIPPED
        return skipped and not self._failed_as(ErrorClass.DUPLICATE)

    @property
    def to_retry(self) -> bool:
        """Whether a plain run, or `delta.retry`, allows another try of a failed row."""
        if self.latest is None:
            return False
        return self.latest.due if self.latest.delta else self._again in (Again.NOW, Again.NEXT_RUN)

    @property
    def to_retry_now(self) -> bool:
        return self._again is Again.NOW

    @property
    def to_recheck(self) -> bool:
        """Whether the row has a copy, and the manifest does not prove that the source is the same."""
        latest = self.latest
        if latest is None or not latest.delta or latest.status not in (Status.COPIED, Status.UNCHANGED):
            return False
        return latest.revalidate not in (None, Revalidate.SKIP)

    @property
    def to_replace(self) -> bool:
        """Whether the row has a copy, and the manifest says that the object has changed."""
        return self.to_recheck and self.latest is not None and self.latest.other

    @property
    def asked_for(self) -> bool:
        """Whether the row's error class, or its status code, is one of ``classes``, or ``classes`` is empty."""
        if self.latest is None or not self.classes:
            return self.latest is not None
        names = (self.latest.error_class, self.latest.status_code)
        return any(name is not None and str(name) in self.classes for name in names)

    @property
    def unconfirmed(self) -> bool:
        return self.failed and self._failed_as(ErrorClass.UPLOAD_UNCONFIRMED)

    @property
    def _again(self) -> Again | None:
        error = self.latest.error_class if self.latest is not None else None
        return None if error is None else AGAIN[error]

    def _failed_as(self, error: ErrorClass) -> bool:
        return self.latest is not None and self.latest.error_class is error


_Rule = tuple[Callable[[_Case], bool], Reason | None]

# The rules of each mode; the first one whose condition holds decides. Without one the row is not to be done.
_LOST: tuple[_Rule, ...] = (  # the row's chunk returned without it
    (lambda case: (case.new or case.pending) and case.held, Reason.REPAIR),
    (lambda case: case.new or case.pending, None),
    (lambda case: case.held and not case.this_run, Reason.RETRY),
)
_RULES: dict[Mode, tuple[_Rule, ...]] = {
    "plain": (
        (lambda case: case.held, None),
        (lambda case: case.new, Reason.NEW),
        (lambda case: case.pending, Reason.REPAIR),
        (lambda case: case.failed and case.other_settings, Reason.CHANGED),
        (lambda case: case.failed and case.to_retry, Reason.RETRY),
        (lambda case: case.failed, None),
        (lambda case: case.superseded, Reason.CHANGED),
        (lambda case: case.skipped_as_existing and case.other_settings, Reason.CHANGED),
        (lambda case: case.to_replace, Reason.CHANGED),
        (lambda case: case.to_recheck, Reason.REVALIDATE),
    ),
    "retry": (
        (lambda case: case.new, None),
        (lambda case: case.failed and case.asked_for, Reason.RETRY),
    ),
    "pass": (*_LOST, (lambda case: case.failed and case.this_run and case.to_retry_now, Reason.RETRY)),
    "repair": _LOST,
}


def reason_to_do(
    latest: Latest | None,
    *,
    held: bool,
    mode: Mode,
    classes: Collection[str] = (),
) -> Reason | None:
    """Returns why a usable row goes into a new chunk, or None if it does not.

    ``held`` means that a listed chunk has the row for an attempt that the ledger does not have yet. ``classes`` are
    error classes (`not_found`) or status codes (`404`). The first row that fits decides:

    | mode | ledger | held | reason |
    |---|---|---|---|
    | plain | any | yes | none: that chunk does it |
    | plain | nothing, or an outcome of planning | no | new |
    | plain | pending (found by verify) | no | repair |
    | plain | failed under other settings | no | changed |
    | plain | failed, in a delta run: as `delta.retry` says of its class | no | retry |
    | plain | failed, retryable | no | retry |
    | plain | failed, permanent | no | none |
    | plain | copied, unchanged; another row wrote the key since | no | changed |
    | plain | skipped under other settings, not a duplicate | no | changed |
    | plain | skipped otherwise | no | none |
    | plain | copied, unchanged; in a delta run: the manifest says that the object has changed | no | changed |
    | plain | copied, unchanged; in a delta run: the manifest does not say that it is the same | no | revalidate |
    | plain | copied, unchanged | no | none |
    | retry | failed, of one of ``classes`` (empty: any) | any | retry |
    | retry | anything else | any | none |
    | pass | nothing, pending, outcome of planning | yes | repair: its chunk returned without it |
    | pass | anything of an earlier run | yes | retry: its chunk returned without it, and on_existing applies |
    | pass | failed in this run, retryable now | any | retry |
    | pass | anything else | any | none |
    | repair | as pass, but failures of this run are not retried | | |

    A row that failed as `upload_unconfirmed` gets `repair` in place of `retry` and `changed`. The object under its key
    may be a bad copy that Ferry uploaded, and no `on_existing` policy may keep that.
    """
    case = _Case(latest, held, classes)
    reason = next((reason for applies, reason in _RULES[mode] if applies(case)), None)
    if case.unconfirmed and reason in (Reason.RETRY, Reason.CHANGED):
        return Reason.REPAIR
    return reason


def auto_chunk_rows(rows: int) -> int:
    """Returns the rows per chunk for a manifest of ``rows``: rows / 500, at least 500, at most 100,000."""
    return max(500, min(100_000, rows // 500))


def check_locations(plan: Plan, job: Job) -> None:
    """Raises UserError when a setting of the source's or destination's location differs from the plan's."""
    changed = [name for name, value in job.location_digests().items() if plan.location_digests.get(name) != value]
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        raise UserError(
            f"{names} changed since this job's first run, so rows that are done would be at another location. Undo the "
            "change, give the job another `state`, or plan again with `ferry run --replan` (nothing is deleted)"
        )


def expected_rows(rows: int, before: int, *, accept_shorter_manifest: bool) -> int:
    """Returns the next Plan.expected_rows for a manifest of ``rows`` usable rows when ``before`` were expected.

    | rows | `delta.accept_shorter_manifest` | expected |
    |---|---|---|
    | at least nine tenths of those before | any | rows |
    | fewer: the manifest looks truncated | no | before, until a manifest is long enough |
    | fewer | yes | rows |
    """
    return rows if accept_shorter_manifest or not much_shorter(rows, before) else before


def looks_truncated(rows: int, expected: int) -> bool:
    """Returns whether a manifest looks truncated; ``expected`` is what :func:`expected_rows` returned for it."""
    return rows < expected


def much_shorter(rows: int, before: int) -> bool:
    """Returns whether a manifest has over a tenth fewer usable rows than ``before``."""
    return rows < 0.9 * before


def stays_in_plan(chunk: ChunkRef, newest_run: int) -> bool:
    """Returns whether a chunk stays in the plan.

    Base chunks always do. Retry chunks do until all their rows are done and all their attempts have an outcome, and
    those of the newest run also do. An attempt of a removed row may have written a key, and never gets an outcome.
    """
    return chunk.kind == "base" or chunk.done < chunk.rows or not chunk.settled or chunk.run_no == newest_run
