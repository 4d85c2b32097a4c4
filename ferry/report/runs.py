"""The runs of a job, by what each one wrote at its end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ferry.core import Damaged
from ferry.state import State, decode_checked_json, run_of

DELTA = (
    "new",
    "changed",
    "unchanged",
    "failed",
    "requests",
    "bytes_saved",
    "removed",
    "deleted",
)  # that the page shows
RUNS = 30  # the last ones; each costs a request if the state is in a bucket


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run that wrote its summary. What an earlier version of Ferry did not write is None."""

    run_no: int
    this_run: dict[str, int]  # outcomes by status
    failed_total: int
    budget: int
    delta: dict[str, int] | None
    ended_at: datetime | None = None
    seconds: float | None = None
    bytes: float | None = None
    rate: float | None = None  # rows per second, from the first outcome to the last
    predicted: tuple[float, float] | None = None  # seconds

    @property
    def rows(self) -> int:
        """Outcomes of the run."""
        return sum(self.this_run.values())

    @property
    def compared(self) -> str:
        """How the run's time compares with the prediction; "" without one."""
        if self.predicted is None or self.seconds is None:
            return ""
        low, high = self.predicted
        return "faster" if self.seconds < low else "slower" if self.seconds > high else "as predicted"


def read_runs(state: State) -> tuple[list[RunLine], int]:
    """Returns the last RUNS runs with a readable summary, the earliest first, and the number of all summaries."""
    names = sorted((name for name in state.list("reports") if name.endswith("/summary.json")), key=run_of)
    found = []
    for name in names[-RUNS:]:
        try:
            found.append(_line(decode_checked_json(state.read(name))))
        except (Damaged, FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
            continue  # of an earlier version, or damaged: `ferry run` says so
    return found, len(names)


def _line(summary: dict[str, Any]) -> RunLine:
    ended, predicted, delta = summary.get("ended_at"), summary.get("predicted"), summary.get("delta")
    return RunLine(
        summary["run_no"],
        {status: int(rows) for status, rows in summary["this_run"].items()},
        summary["counts"]["failed"],
        summary["budget"],
        {name: int(delta[name]) for name in DELTA} if delta and delta.keys() >= set(DELTA) else None,
        datetime.fromisoformat(ended) if ended else None,
        _number(summary.get("seconds")),
        _number(summary.get("bytes")),
        _number(summary.get("rate")),
        (float(predicted[0]), float(predicted[1])) if predicted else None,
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
