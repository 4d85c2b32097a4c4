"""The first words of a report: whether the migration is complete."""

from __future__ import annotations

from typing import NamedTuple

from ferry.state import Counts, RunEnd


class Verdict(NamedTuple):
    """``kind`` is that of the page: good, warn or bad."""

    kind: str
    text: str


def judge(
    counts: Counts, budget: int, *, live: str = "", lost_run: int | None = None, end: RunEnd | None = None
) -> Verdict:
    """Returns the verdict. ``live`` is the name of a run that is going on.

    | live | pending | failed | a run was lost, or the last one did not end as Completed | kind | verdict |
    |---|---|---|---|---|---|
    | yes | any | any | any | warn | Not finished |
    | no | some | any | any | bad | Not complete |
    | no | 0 | over budget | any | bad | Not complete |
    | no | 0 | within budget, or 0 | yes | bad | Not complete |
    | no | 0 | some, within budget | no | warn | Complete, with failures |
    | no | 0 | 0, but keys were taken | no | warn | Complete, with skipped rows |
    | no | 0 | 0 | no | good | Complete |
    """
    stored = counts.copied + counts.unchanged
    of_all = f"{stored:,} of {_rows(counts.planned)} {'is' if stored == 1 else 'are'} stored"
    if live:
        return Verdict("warn", f"Not finished: the run {live} is going on. So far {of_all}")
    if counts.pending:
        return Verdict("bad", f"Not complete: {of_all}, {counts.pending:,} pending" + _failed(counts))
    if counts.failed > budget:
        return Verdict(
            "bad",
            f"Not complete: {_rows(counts.failed)} of {counts.planned:,} failed, more than the {budget:,} allowed",
        )
    if lost_run is not None:
        return Verdict("bad", f"Not complete: run {lost_run} was ended from outside. Run the job again; it resumes")
    if end is not None and not end.message.startswith("Completed"):
        return Verdict("bad", f"Not complete: {of_all}, but the last run did not end well")
    if counts.failed:
        return Verdict("warn", f"Complete, with failures: {of_all}, {counts.failed:,} failed ({budget:,} allowed)")
    if taken := counts.skipped - counts.duplicates:
        return Verdict("warn", f"Complete, with skipped rows: {of_all}, {taken:,} skipped because the key was taken")
    duplicates = f", {_repeats(counts.duplicates)} another one" if counts.duplicates else ""
    return Verdict("good", f"Complete: {of_all}{duplicates}")


def _failed(counts: Counts) -> str:
    return f", {counts.failed:,} failed" if counts.failed else ""


def _repeats(count: int) -> str:
    return "1 repeats" if count == 1 else f"{count:,} repeat"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
