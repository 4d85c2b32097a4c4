"""Whether copies that have no row any more may be deleted, and what became of them. gone.py does the work."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.engine.job_delta import Delta


@dataclass(slots=True)
class Swept:
    """What became of the copies that had no row any more."""

    gone: int = 0
    deleted: int = 0
    left: int = 0  # another object stands there, or none: they are not counted as gone any more
    failed: int = 0
    why_failed: str = ""  # of the first
    ended: str = ""  # why no more were tried after some
    refused: str = ""  # why nothing was deleted although it was asked for
    listed: str = ""  # the file with what went

    @property
    def well(self) -> bool:
        return not self.refused and not self.failed


def refusal(*, gone: int, standing: int, rows: int, believed: int, unsettled: str, delta: Delta) -> str:
    """Why no copy may be deleted tonight; "" where all of ``gone`` may.

    ``rows``: of the list; ``believed``: of the last one that did not look cut off (plan.rows_believed). ``unsettled``:
    what this night has left open, in words. An image may have moved to another row: its old copy stays until the new
    one is there.

    | gone | the list | the night | gone, of those standing | |
    |---|---|---|---|---|
    | 0 | any | any | | may (there is nothing) |
    | some | fewer rows than believed: it looks cut off | any | any | refused |
    | some | else | not settled, or over the budget | any | refused |
    | some | else | settled | more than max_delete | refused |
    | some | else | settled | not more | may |
    """
    if not gone:
        return ""
    if believed and rows < believed:
        return (
            f"the list has {rows:,} rows where it had {believed:,}, and looks cut off. If it is right, run once with "
            "`delta.shorter_list: true`"
        )
    if unsettled:
        return f"the night left {unsettled}"
    most = delta.most_deleted(standing)
    if gone > most:
        return (
            f"{gone:,} of {standing:,} copies have no row any more, and `delta.max_delete` ({delta.max_delete}) lets "
            f"{most:,} go in one night. If they are to go, run once with a larger one"
        )
    return ""
