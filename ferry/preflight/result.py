"""The result of `ferry check`: what the sample showed, what is predicted, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from ferry.preflight.destination_probe import DestinationFacts
from ferry.preflight.host_probe import HostFacts
from ferry.preflight.predict import Range
from ferry.state import Planned


@dataclass(frozen=True, slots=True)
class FailureShare:
    """Failures of one class at one host in the sample, and how many of all rows would fail so."""

    error_class: str
    status_code: int | None
    host: str
    sampled: int
    rows: Range
    message: str
    examples: list[str]  # sources, without secrets


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run of all rows to do would take. Times in seconds."""

    rows: int
    seconds: Range
    rows_per_s: Range
    failures: Range  # of all rows, as the budget counts them
    known_failures: int  # of these: unusable rows, key collisions, and permanent failures of earlier runs
    budget: int
    bytes: Range
    source_requests: float
    destination_requests: float
    currency: str
    money: float
    money_per_month: float
    disk_bytes: float  # of the state, and of the spool at most
    memory_bytes: float
    limited_by: str  # why it is not faster, as the limiter of the busiest host has it


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All that a check found."""

    job: str
    planned: Planned
    sampled: int  # rows with an outcome
    copied: int
    unfinished: int  # rows of the sample without an outcome
    why_unfinished: str
    failures: list[FailureShare]
    formats: dict[str, int]  # media type -> rows
    median_bytes: int
    largest_bytes: int
    hosts: list[HostFacts]
    destination: DestinationFacts
    wrote_sample: bool  # to the destination; else to a directory of this machine
    left_objects: int  # probe objects that could not be deleted
    prefix: str  # where they were written
    plain_http: int  # rows to do whose address is not encrypted, of those sampled
    prediction: Prediction
    warnings: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: ready. 1: more rows would fail than `failure_budget` allows. 2: nothing works.

        That is: no row of the sample was copied, and no earlier run has done a row.
        """
        nothing_done = self.planned.untouched <= self.prediction.known_failures + self.planned.duplicates
        if self.sampled + self.unfinished and not self.copied and nothing_done:
            return 2
        return 1 if self.prediction.failures.value > self.prediction.budget else 0
