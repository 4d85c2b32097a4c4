"""The result of `ferry check`: what the sample showed, what is predicted, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from ferry.preflight.destination_probe import DestinationFacts, Existing
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
    seconds: Range | None  # None if no row was copied in the time of the check
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
    unfinished: dict[str, int]  # host -> rows of the sample without an outcome
    why_unfinished: str
    failures: list[FailureShare]
    formats: dict[str, int]  # media type -> rows
    lost_attributes: dict[str, int]  # attribute that the destination cannot hold -> rows
    median_bytes: int
    largest_bytes: int
    hosts: list[HostFacts]
    destination: DestinationFacts
    existing: Existing  # objects under the sample's keys, before the run
    on_existing: str  # the job's setting
    wrote_sample: bool  # to the destination; else to a directory of this machine
    left_objects: int  # probe objects that could not be deleted
    prefix: str  # where they were written
    plain_http: int  # rows to do whose address is not encrypted, of those sampled
    prediction: Prediction
    warnings: list[str] = field(default_factory=list)

    @property
    def is_doubtful(self) -> bool:
        """Whether rows of the sample have no outcome, and with them more might fail than `failure_budget` allows."""
        return bool(self.unfinished) and self.prediction.failures.high > self.prediction.budget

    @property
    def copies_nothing(self) -> bool:
        """Whether there is something to copy, and no row of the sample was copied."""
        return bool(self.sampled or self.unfinished) and not self.copied

    @property
    def exit_code(self) -> int:
        """The exit code of the command.

        | the sample | failures | earlier runs have done rows | code |
        |---|---|---|---|
        | no row was copied | any | no | 2 |
        | any | more than the budget | any | 1 |
        | rows without an outcome | more than the budget at the upper end | any | 1 |
        | any other | within the budget | any | 0 |
        """
        p = self.prediction
        if self.copies_nothing and self.planned.untouched <= p.known_failures + self.planned.duplicates:
            return 2
        return 1 if p.failures.value > p.budget or self.is_doubtful else 0
