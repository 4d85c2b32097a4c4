"""Rates of a job's runs, and the check whether a run was far slower than those before it.

A delta run that rechecks a million rows does thousands per second; a migration that copies them does hundreds. So a run
is compared only with runs of its mode that had at least as much to do per row.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ferry.state import State, decode_checked_json, encode_checked_json

NAME = "reports/rates.json"
KEPT = 50  # runs in the file
COMPARED = 10  # the latest comparable runs that a run is compared with
MIN_COMPARED = 3  # with fewer runs the usual rate is not known
MIN_ROWS = 100
MIN_S = 60.0  # a shorter run is never reported, and its rate says little
SLOWER = 2.0  # a run this many times slower than usual is reported
SHARE, SIZE, ROWS = 0.05, 2.0, 10.0  # allowed differences: share of copied rows, factor in bytes per row, in rows


@dataclass(frozen=True, slots=True)
class Rate:
    """The figures of one run: rows done, rows copied, and the seconds between its first and its last outcome."""

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
    usual: float  # rows per second, the median
    runs: int  # number of compared runs


def is_meaningful(rate: Rate) -> bool:
    """Returns whether a run had enough rows and took long enough for a meaningful rate."""
    return rate.rows >= MIN_ROWS and rate.seconds >= MIN_S


def comparable(rate: Rate, earlier: Rate) -> bool:
    """Returns whether an earlier run had at least as much to do per row, and a similar number of rows.

    | mode | share of rows that were copied | bytes per row | rows | comparable |
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
    """Returns how slow a run was compared with its last ten comparable runs, or None if it was not far slower.

    ``earlier`` has the earlier runs, oldest first.

    | rows and seconds | comparable runs | its rate | far slower |
    |---|---|---|---|
    | too few | any | any | no |
    | enough | fewer than 3 | any | no |
    | enough | 3 or more | half of their median, or more | no |
    | enough | 3 or more | less | yes |
    """
    if not is_meaningful(rate):
        return None
    rates = [one.rows_per_s for one in earlier if one.rows >= MIN_ROWS and comparable(rate, one)][-COMPARED:]
    if len(rates) < MIN_COMPARED:
        return None
    usual = statistics.median(rates)
    return Slow(rate, usual, len(rates)) if rate.rows_per_s * SLOWER < usual else None


def read_rates(state: State) -> list[Rate]:
    """Returns the rates of earlier runs, oldest first; none for a missing or damaged file, which nothing else needs."""
    try:
        return [Rate(**line) for line in decode_checked_json(state.read(NAME))["runs"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def keep_rates(state: State, rates: Sequence[Rate]) -> None:
    """Writes the rates of the last KEPT runs."""
    state.write(NAME, encode_checked_json({"runs": [asdict(rate) for rate in rates[-KEPT:]]}))
