"""How fast a job's runs were, and whether one was far slower than those before it.

Only like is compared with like. A night that asks about a million settled rows makes thousands a second, a migration
that copies them some hundreds: so a run is held against those of its mode that had at least as much to do for each row.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ferry.state import State, decode_checked_json, encode_checked_json

NAME = "reports/rates.json"
KEPT = 50  # runs that the file remembers
LAST = 10  # runs that one is held against
FEWEST = 3  # with fewer nobody knows what is usual
LEAST_ROWS = 100
LEAST_S = 60.0  # a run that took less is no trouble, however slow; nor is its rate one of the engine's
FAR = 2.0  # times as slow
SHARE, SIZE, ROWS = 0.05, 2.0, 10.0  # what two runs may differ by: of copied rows, times in bytes a row, times in rows


@dataclass(frozen=True, slots=True)
class Rate:
    """One run: rows that it settled, those that it copied, and the seconds between its first outcome and its last."""

    run_no: int
    mode: str
    rows: int
    copied: int
    bytes: int
    seconds: float

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds

    @property
    def copied_share(self) -> float:
        return self.copied / self.rows

    @property
    def bytes_per_row(self) -> float:
        return self.bytes / self.rows


@dataclass(frozen=True, slots=True)
class Slow:
    """A run that was far slower than usual."""

    rate: Rate
    usual: float  # rows a second, the median
    runs: int  # that were compared


def counts(rate: Rate) -> bool:
    """Is it a rate to speak of?"""
    return rate.rows >= LEAST_ROWS and rate.seconds >= LEAST_S


def comparable(rate: Rate, earlier: Rate) -> bool:
    """Had the earlier run at least as much to do for each row?

    | mode | share of rows that were copied | bytes a row | rows | |
    |---|---|---|---|---|
    | another | any | any | any | no |
    | the same | fewer by more than 5 points | any | any | no |
    | the same | as many, or more | less than half | any | no |
    | the same | as many, or more | half, or more | less than a tenth, or more than ten times | no |
    | the same | as many, or more | half, or more | of that size | yes |
    """
    return (
        rate.mode == earlier.mode
        and earlier.copied_share >= rate.copied_share - SHARE
        and earlier.bytes_per_row >= rate.bytes_per_row / SIZE
        and rate.rows / ROWS <= earlier.rows <= rate.rows * ROWS
    )


def slow(rate: Rate, earlier: Sequence[Rate]) -> Slow | None:
    """Was it far slower than its last ten comparable runs? ``earlier``: oldest first.

    | rows and seconds | comparable runs | its rate | |
    |---|---|---|---|
    | too few | any | any | no |
    | enough | fewer than 3 | any | no |
    | enough | 3 or more | half of their median, or more | no |
    | enough | 3 or more | less | yes |
    """
    if not counts(rate):
        return None
    alike = [one.rows_per_s for one in earlier if one.rows >= LEAST_ROWS and comparable(rate, one)][-LAST:]
    if len(alike) < FEWEST:
        return None
    usual = statistics.median(alike)
    return Slow(rate, usual, len(alike)) if rate.rows_per_s * FAR < usual else None


def read_rates(state: State) -> list[Rate]:
    """Oldest first. What cannot be read is forgotten: it is no part of the accounts."""
    try:
        return [Rate(**line) for line in decode_checked_json(state.read(NAME))["runs"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def keep_rates(state: State, rates: Sequence[Rate]) -> None:
    state.write(NAME, encode_checked_json({"runs": [asdict(rate) for rate in rates[-KEPT:]]}))
