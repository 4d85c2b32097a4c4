"""The configuration model of a migration, and templates for destination keys."""

from ferry.job.columns import OFF, ROLES, Columns
from ferry.job.delta import Delta
from ferry.job.model import Checks, HostLimits, Job, Limits, OnExisting, Retries
from ferry.job.prices import Prices
from ferry.job.templates import (
    FIELD_FORMATS,
    SOURCE_FIELDS,
    Template,
    decode_path,
    default_key,
    finish_key,
    key_problem,
    source_field,
)
from ferry.job.units import duration

__all__ = [
    "FIELD_FORMATS",
    "OFF",
    "ROLES",
    "SOURCE_FIELDS",
    "Checks",
    "Columns",
    "Delta",
    "HostLimits",
    "Job",
    "Limits",
    "OnExisting",
    "Prices",
    "Retries",
    "Template",
    "decode_path",
    "default_key",
    "duration",
    "finish_key",
    "key_problem",
    "source_field",
]
