"""Whether copies that have no row any more may be deleted, and what became of them. gone.py does the work."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.engine.job_delta import Delta
from tasks.engine.missing import Missing
from tasks.engine.plan import cut_off

STAYS, WAITS = "stays", "waits"  # what the words for a copy begin with that is not deleted tonight


@dataclass(slots=True)
class Swept:
    """What became of the copies that had no row any more."""

    gone: int
    delete_after: int  # so many lists in a row
    deleted: int = 0
    left: int = 0  # another object stands there, or none: they are not counted as gone any more
    failed: int = 0
    why_failed: str = ""  # of the first
    ended: str = ""  # why no more were tried after some
    refused: str = ""  # why nothing was deleted although it was asked for
    listed: str = ""  # the file with what went, and what stays
    waiting: int = 0  # not missing from enough lists in a row yet
    kept: int = 0  # missing long enough, and a row or the source may still have them

    @property
    def well(self) -> bool:
        return not self.refused and not self.failed


def why_it_stays(case: Missing, delete_after: int) -> str:
    """Why a copy that has no row any more is not deleted, whatever the night came to; "" where it may be.

    | lists in a row that lacked it | a row that is not at the destination | |
    |---|---|---|
    | fewer than delete_after | any | waits |
    | enough | has its id or its source | stays |
    | enough | has neither a usable address nor an id, nor a key | stays |
    | enough | none of these | may go |
    """
    if case.lists < delete_after:
        times = "once" if case.lists == 1 else f"{case.lists} times"
        return f"{WAITS}: missing from the list {times}; deleted when {delete_after} lists in a row lack it"
    if case.shares:
        return f"{STAYS}: a row of the list that is not at the destination has its {case.shares}"
    if case.nameless:
        return f"{STAYS}: the list has a row with neither a usable address nor an id, which may be its own"
    return ""


def refusal(*, gone: int, due: int, standing: int, rows: int, believed: int, unsettled: str, delta: Delta) -> str:
    """Why no copy may be deleted tonight; "" where all that are ``due`` may.

    ``due``: those of ``gone`` that do not stay by :func:`why_it_stays`. ``rows``: of the list, that can be used and
    are no duplicates; ``believed``: of the last one that did not look cut off (plan.rows_believed). ``unsettled``:
    what this night has left open, in words. An image may have moved to another row: its old copy stays until the new
    one is there.

    | gone | due | the list | the night | due, of those standing | |
    |---|---|---|---|---|---|
    | 0 | 0 | any | any | | may (there is nothing) |
    | some | any | looks cut off (plan.cut_off) | any | any | refused |
    | some | 0 | else | any | | may (there is nothing) |
    | some | some | else | not settled, or over the budget | any | refused |
    | some | some | else | settled | more than max_delete | refused |
    | some | some | else | settled | not more | may |
    """
    if gone and cut_off(rows, believed):
        return (
            f"the list has {rows:,} rows where it had {believed:,}, and looks cut off. If it is right, run once with "
            "`delta.shorter_list: true`"
        )
    if not due:
        return ""
    if unsettled:
        return f"the night left {unsettled}"
    most = delta.most_deleted(standing)
    if due > most:
        return (
            f"{due:,} of {standing:,} copies have no row any more, and `delta.max_delete` ({delta.max_delete}) lets "
            f"{most:,} go in one night. If they are to go, run once with a larger one"
        )
    return ""
