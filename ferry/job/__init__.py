"""The configuration model of a migration, and templates for destination keys."""

from ferry.job.api_list import ApiList, Paginator
from ferry.job.auth import SourceAuth
from ferry.job.columns import OFF, ROLES, Columns
from ferry.job.delta import Delta
from ferry.job.limits import LIMIT_NAMES, NO_LIMIT, HostLimits, Limits, changed_limit, limits_by_key
from ferry.job.model import Checks, Job, OnExisting, Side
from ferry.job.prices import Prices
from ferry.job.public_url import PublicUrl
from ferry.job.retries import Retries
from ferry.job.templates import (
    FIELD_FORMATS,
    SOURCE_FIELDS,
    Template,
    are_plain_keys,
    decode_path,
    default_key,
    finish_key,
    key_problem,
    needs_sha256,
    source_field,
)
from ferry.job.units import UNLIMITED_BYTES, duration
from ferry.job.validators import host_pattern, patterns_for

__all__ = [
    "FIELD_FORMATS",
    "LIMIT_NAMES",
    "NO_LIMIT",
    "OFF",
    "ROLES",
    "SOURCE_FIELDS",
    "UNLIMITED_BYTES",
    "ApiList",
    "Checks",
    "Columns",
    "Delta",
    "HostLimits",
    "Job",
    "Limits",
    "OnExisting",
    "Paginator",
    "Prices",
    "PublicUrl",
    "Retries",
    "Side",
    "SourceAuth",
    "Template",
    "are_plain_keys",
    "changed_limit",
    "decode_path",
    "default_key",
    "duration",
    "finish_key",
    "host_pattern",
    "key_problem",
    "limits_by_key",
    "needs_sha256",
    "patterns_for",
    "source_field",
]
