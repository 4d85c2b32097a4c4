"""When a failed object is tried again: backoff, Retry-After and the decision. Pure; nothing here waits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ferry.core import Again, ErrorClass, ObjectError


class Next(StrEnum):
    """What happens to an object after a failed try."""

    RETRY_AFTER = "retry_after"  # again, after `delay_s`
    TO_THE_END = "to_the_end"  # once more when the chunk's other rows are through
    GIVE_UP = "give_up"  # the row is `failed`


@dataclass(frozen=True, slots=True)
class Step:
    """The decision, and the seconds to wait first (0 except for RETRY_AFTER)."""

    next: Next
    delay_s: float = 0.0


_TO_THE_END = Step(Next.TO_THE_END)
_GIVE_UP = Step(Next.GIVE_UP)


def next_step(
    error: ObjectError,
    try_no: int,
    attempts: int,
    last_try_done: bool,
    max_wait_s: float,
    *,
    delay_s: float,
    mismatches: int,
) -> Step:
    """What to do after try ``try_no`` (1, 2, ...) of at most ``attempts`` has failed with ``error``.

    ``last_try_done``: this was the try at the chunk's end. ``delay_s`` is the backoff drawn for this
    try; a Retry-After lengthens it. ``mismatches``: how many tries of this object, this one included,
    ended in a digest mismatch. The first row that fits decides:

    | the error | tries | Retry-After | step |
    |---|---|---|---|
    | digest_mismatch | the first mismatch | any | RETRY_AFTER(delay_s): one more fetch, whatever is left |
    | digest_mismatch | a further one | any | GIVE_UP |
    | again = never, next_run | any | any | GIVE_UP |
    | again = now | the last try is done | any | GIVE_UP |
    | again = now | any | over max_wait_s | TO_THE_END |
    | again = now | try_no < attempts | none, or up to max_wait_s | RETRY_AFTER(the longer of both) |
    | again = now | try_no >= attempts | none, or up to max_wait_s | TO_THE_END |

    An object's own failure never leaves its row pending (SEMANTICS: rows and their states): that is
    for paused hosts, Fatal errors and stops, which the chunk sees to.
    """
    if error.error_class is ErrorClass.DIGEST_MISMATCH:
        return Step(Next.RETRY_AFTER, delay_s) if mismatches <= 1 else _GIVE_UP
    if error.again is not Again.NOW or last_try_done:
        return _GIVE_UP
    asked_s = error.retry_after_s or 0.0
    if asked_s > max_wait_s or try_no >= attempts:
        return _TO_THE_END
    return Step(Next.RETRY_AFTER, max(delay_s, asked_s))
