"""The end of a run as data for Prefect: the event `ferry.run.ended`, and labels that `ferry jobs` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefect.client.schemas.objects import State, StateType

from tasks.reporting.text import Report, exit_code_of

EVENT = "ferry.run.ended"
COUNTS = ("planned", "copied", "unchanged", "skipped", "failed", "pending", "bytes")
LABEL = "ferry.end."  # before the name of each label


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended. ``counts`` are those of the whole job, by COUNTS; empty where a run found out nothing."""

    job: str
    flow: str
    run_no: int | None
    verdict: str  # the first word of the state's message: Completed, Failed, Cancelled
    exit_code: int
    message: str
    counts: dict[str, int] = field(default_factory=dict)
    this_run: dict[str, int] = field(default_factory=dict)  # outcomes of a migration's run

    @property
    def payload(self) -> dict[str, Any]:
        """Returns the event's payload. Every key is always there, so that templates need no test."""
        return {
            "job": self.job,
            "flow": self.flow,
            "run_no": self.run_no,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "message": self.message,
            **{name: self.counts.get(name) for name in COUNTS},
            "this_run": self.this_run,
        }

    def resource(self, own: str, name: str) -> dict[str, str]:
        """Returns the event's resource, the run. Triggers compare its labels; they cannot compare a payload."""
        return {
            "prefect.resource.id": f"prefect.flow-run.{own}",
            "prefect.resource.name": name,
            "ferry.job": self.job,
            "ferry.verdict": self.verdict,
            "ferry.exit-code": str(self.exit_code),
            "ferry.failed-rows": "yes" if self.counts.get("failed") else "no",
        }

    @property
    def labels(self) -> dict[str, Any]:
        """Returns the labels of the run. Prefect's labels have no null."""
        named = {name: value for name, value in self.payload.items() if name not in ("message", "this_run", "flow")}
        return {LABEL + name: value for name, value in named.items() if value is not None}


def end_of(
    job: str, flow: str, state: State[Any], run_no: int | None, counts: dict[str, int], this_run: dict[str, int]
) -> RunEnd:
    """Returns the end of a run whose final state is ``state``."""
    message = state.message or ""
    cancelled = state.type is StateType.CANCELLED
    code, text = (130, message) if cancelled else exit_code_of(state.type is StateType.COMPLETED, message)
    return RunEnd(job, flow, run_no, state.type.value.capitalize(), code, text, counts, this_run)


def of_report(report: Report) -> dict[str, int]:
    """Returns the counts of a migration: rows of the whole job, bytes of this run."""
    return {**{name: int(report.counts[name]) for name in COUNTS if name != "bytes"}, "bytes": report.bytes}
