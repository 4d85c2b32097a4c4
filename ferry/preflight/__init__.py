"""The preflight of a job: what its destination can do, what a sample shows, and what a run would take."""

from ferry.preflight.check import check_job
from ferry.preflight.destination_probe import DestinationFacts
from ferry.preflight.host_probe import HostFacts
from ferry.preflight.predict import Range
from ferry.preflight.result import CheckResult, FailureShare, Prediction
from ferry.preflight.sample_run import Engine

__all__ = [
    "CheckResult",
    "DestinationFacts",
    "Engine",
    "FailureShare",
    "HostFacts",
    "Prediction",
    "Range",
    "check_job",
]
