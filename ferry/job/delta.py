"""The job's `delta` settings: how delta runs keep the copies in sync.

The decisions are in ferry/core/revalidation.py, ferry/planning/rules.py and ferry/reconcile/prune.py.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, field_validator

from ferry.core import AGAIN, Again, ErrorClass
from ferry.job.base import Model
from ferry.job.units import Duration
from ferry.job.validators import parse_budget


class RetryRule(Model):
    """How often, and how soon, delta runs retry a failed row."""

    _old_names = {"nights": "runs"}

    after: Duration = 0.0
    """Time after the last attempt before which the row is not retried: `20h`, `7d`, or seconds."""
    runs: Annotated[int, Field(ge=0, le=10_000)] = 3
    """Number of runs that try the row, including the first. Afterwards only `--retry-failed` tries it. 0: never."""


RETRYABLE = RetryRule(runs=30)  # classes that a full run also retries
RECOVERABLE = RetryRule(runs=7)  # classes that the origin may fix: an image published late, an error page in its place
RULES: dict[ErrorClass, RetryRule] = {
    **{error: RETRYABLE for error, again in AGAIN.items() if again is not Again.NEVER},
    ErrorClass.NOT_FOUND: RECOVERABLE,
    ErrorClass.NOT_IMAGE: RECOVERABLE,
    ErrorClass.DIGEST_MISMATCH: RECOVERABLE,
    ErrorClass.BAD_ENCODING: RECOVERABLE,
}


class Delta(Model):
    """Settings of `mode: delta`: rechecks, retries and deletions (docs/how-to/delta-runs.md)."""

    _old_names = {"delete_gone": "delete_removed", "shorter_list": "accept_shorter_manifest"}

    revalidate_after: Duration = 30 * 86_400.0
    """Age at which a copy with weak evidence is downloaded again: `7d`, `12h`, or seconds. Evidence is weak if the origin sends no ETag or date, only a weak ETag, or ignores conditional requests."""
    retry: dict[ErrorClass, RetryRule] = {}
    """Retry rules by error class: `{not_found: {after: 20h, runs: 14}}`. docs/how-to/delta-runs.md lists the defaults of the other classes."""

    delete_removed: bool = False
    """Delete copies whose rows were removed from the manifest, at the end of a successful delta run. If false, the copies stay and the report counts them."""
    delete_after: Annotated[int, Field(ge=1, le=1000)] = 2
    """With `delete_removed`: number of consecutive complete delta runs whose manifest lacks the row before its copy is deleted. 1: the first such run deletes it."""
    max_delete: int | float | str = "1%"
    """With `delete_removed`: maximum share of the copies (`1%`, `0.01`) or number of copies (`25`) that one delta run deletes. If more are due, none is deleted and the run fails."""
    accept_shorter_manifest: bool = False
    """With `delete_removed`: accept a manifest with over a tenth fewer rows than the last one. If false, such a manifest counts as truncated, and nothing is deleted."""

    @field_validator("max_delete", mode="before")
    @classmethod
    def _max_delete(cls, value: int | float | str) -> int | float | str:
        parse_budget(value, "max_delete")
        return value

    def max_deletions(self, copies: int) -> int:
        """Returns how many of ``copies`` one delta run may delete. A share is rounded down."""
        share, count = parse_budget(self.max_delete)
        return (count or 0) if share is None else math.floor(copies * share + 1e-9)

    def rule(self, error: ErrorClass) -> RetryRule:
        """Returns the retry rule of an error class: the job's own, else the default."""
        return self.retry.get(error) or RULES.get(error) or RetryRule(runs=0)
