"""The job's `delta`: how a nightly run keeps a copy true. The decisions are revalidation.py's and rules.py's."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from ferry.core import AGAIN, Again, ErrorClass
from ferry.job.base import Model
from ferry.job.validators import parse_budget

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*\Z")
MOST_S = 10 * 366 * 86_400


def duration(value: Any) -> Any:
    """Seconds, of a number or of `90s`, `30m`, `20h`, `7d`, `4w`."""
    wrong = "a duration is a number of seconds, or `30m`, `20h`, `7d`, `4w`"
    if isinstance(value, str):
        found = _DURATION.match(value.lower())
        if found is None or found[2] not in _UNITS:
            raise ValueError(f"`{value[:40]}` is no duration; {wrong}")
        value = float(found[1]) * _UNITS[found[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(wrong)
    if not 0 <= value <= MOST_S:
        raise ValueError(f"a duration of {value:g} s is none; {wrong}, ten years at most")
    return float(value)


Duration = Annotated[float | str, BeforeValidator(duration)]


class RetryRule(Model):
    """How long, and how often, a delta tries a failed row again."""

    _old_names = {"nights": "runs"}

    after: Duration = 0.0
    """Not sooner than this after its last try: `20h`, `7d`, or seconds."""
    runs: Annotated[int, Field(ge=0, le=10_000)] = 3
    """In so many runs, the first one included; then it is left to `--retry-failed`. 0: never."""


PASSING = RetryRule(runs=30)  # what a plain run tries again, too
LATE = RetryRule(runs=7)  # an image that its list was ahead of; a page that stood in for it
RULES: dict[ErrorClass, RetryRule] = {
    **{error: PASSING for error, again in AGAIN.items() if again is not Again.NEVER},
    ErrorClass.NOT_FOUND: LATE,
    ErrorClass.NOT_IMAGE: LATE,
    ErrorClass.DIGEST_MISMATCH: LATE,
    ErrorClass.BAD_ENCODING: LATE,
}


class Delta(Model):
    """What `mode: delta` does besides moving what is new (docs/how-to/delta-runs.md)."""

    _old_names = {"delete_gone": "delete_removed", "shorter_list": "accept_shorter_manifest"}

    revalidate_after: Duration = 30 * 86_400.0
    """How long a copy is believed whose origin gives nothing to ask by (no ETag, no date, or it answers conditions with the whole body): `7d`, `12h`, or seconds. Then its bytes are read again."""
    retry: dict[ErrorClass, RetryRule] = {}
    """Which failures are tried again, by class: `{not_found: {after: 20h, runs: 14}}`. What is not named is as docs/how-to/delta-runs.md has it."""

    delete_removed: bool = False
    """Delete the copies of rows that left the list, at the end of a night that went well. Off: they stay, and the report counts them."""
    delete_after: Annotated[int, Field(ge=1, le=1000)] = 2
    """With `delete_removed`: a copy is deleted when so many lists in a row lacked its row, each of a whole delta run. 1: by the first one."""
    max_delete: int | float | str = "1%"
    """With `delete_removed`: more than this share of the copies (`1%`, `0.01`), or more than this many (`25`), are never deleted in one night; then none is, and the run fails."""
    accept_shorter_manifest: bool = False
    """With `delete_removed`: believe a list that has over a tenth fewer rows than the last one. Off: it looks cut off, and nothing is deleted."""

    @field_validator("max_delete", mode="before")
    @classmethod
    def _max_delete(cls, value: int | float | str) -> int | float | str:
        parse_budget(value, "max_delete")
        return value

    def most_deleted(self, standing: int) -> int:
        """How many of ``standing`` copies may be deleted in one night; a share is rounded down."""
        share, count = parse_budget(self.max_delete)
        return (count or 0) if share is None else math.floor(standing * share + 1e-9)

    def rule(self, error: ErrorClass) -> RetryRule:
        return self.retry.get(error) or RULES.get(error) or RetryRule(runs=0)
