"""The decision when a failed row is tried again, from its error, its tries and Retry-After."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ferry.core import Again, ErrorClass, ObjectError


class Next(StrEnum):
    """What happens to a row after a failed try."""

    RETRY_AFTER = "retry_after"  # another try after `delay_s`
    REQUEUE_LAST = "requeue_last"  # a last try when all other rows of the chunk have finished
    NEXT_ADDRESS = "next_address"  # a first try at the row's next address, at once
    GIVE_UP = "give_up"  # the row is `failed`


@dataclass(frozen=True, slots=True)
class Step:
    """The decision, and the seconds to wait first (0 except for RETRY_AFTER)."""

    next: Next
    delay_s: float = 0.0


_REQUEUE_LAST = Step(Next.REQUEUE_LAST)
_GIVE_UP = Step(Next.GIVE_UP)
_NEXT_ADDRESS = Step(Next.NEXT_ADDRESS)


_OF_DESTINATION = (ErrorClass.EXISTS, ErrorClass.LOST_ATTRIBUTE, ErrorClass.INTERNAL)


def other_address_may_help(error: ObjectError) -> bool:
    """Returns whether another address of the same object is worth a request in this run.

    | error | again | |
    |---|---|---|
    | at the destination, `exists`, `lost_attribute`, `internal` | any | no: it is not one of this address |
    | 5xx, 429, timeout, connection, truncated, ... | now | no: the address may have the object |
    | 403, blocked_address | next_run | yes: stores without a right to list answer 403 for a missing object |
    | 404, 410, not_image, too_large, digest_mismatch, ... | never | yes |
    """
    of_address = not error.at_destination and error.error_class not in _OF_DESTINATION
    return of_address and error.again is not Again.NOW


def next_step(
    error: ObjectError,
    try_no: int,
    attempts: int,
    last_try_done: bool,
    max_wait_s: float,
    *,
    delay_s: float,
    mismatches: int,
    more_addresses: bool = False,
) -> Step:
    """Returns what to do after try ``try_no`` (1, 2, ...) of at most ``attempts`` has failed with ``error``.

    ``last_try_done`` means that this was the try at the chunk's end. ``delay_s`` is the backoff that was drawn for this
    try; a Retry-After lengthens it. ``mismatches`` is the number of tries of this row, this one included, that ended in
    a digest mismatch at the present address. ``more_addresses``: the row has another address. The first row that fits
    decides:

    | the error | tries | Retry-After | step |
    |---|---|---|---|
    | digest_mismatch | the first mismatch | any | RETRY_AFTER(delay_s): one more fetch, whatever tries are left |
    | another address may help, and there is one | any | any | NEXT_ADDRESS |
    | digest_mismatch | a further one | any | GIVE_UP |
    | again = never, next_run | any | any | GIVE_UP |
    | again = now | the last try is done | any | GIVE_UP |
    | again = now | any | over max_wait_s | REQUEUE_LAST |
    | again = now | try_no < attempts | none, or up to max_wait_s | RETRY_AFTER(the longer of both) |
    | again = now | try_no >= attempts | none, or up to max_wait_s | REQUEUE_LAST |

    The failure of a row itself never leaves it pending. Rows stay pending after Fatal errors and stops, and for paused
    hosts; the chunk handles these.
    """
    if error.error_class is ErrorClass.DIGEST_MISMATCH and mismatches <= 1:
        return Step(Next.RETRY_AFTER, delay_s)
    if more_addresses and other_address_may_help(error):
        return _NEXT_ADDRESS
    if error.again is not Again.NOW or last_try_done:
        return _GIVE_UP
    retry_after_s = error.retry_after_s or 0.0
    if retry_after_s > max_wait_s or try_no >= attempts:
        return _REQUEUE_LAST
    return Step(Next.RETRY_AFTER, max(delay_s, retry_after_s))
