"""The job's `retries` and `timeouts`: how often, and for how long, an object is tried."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ferry.job.base import Model as _Model
from ferry.job.units import Seconds


class Retries(_Model):
    """Number and timing of retries."""

    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """Attempts per object before its row moves to the end of its chunk for one last attempt."""
    backoff_s: Annotated[Seconds, Field(gt=0, le=600)] = 1.0
    """Time before the second attempt, in seconds or as `2m`; doubled for each further attempt, with jitter."""
    max_backoff_s: Annotated[Seconds, Field(gt=0, le=3600)] = 60.0
    """Maximum time between two attempts. If Retry-After is longer, the row is tried later."""
    passes: Annotated[int, Field(ge=0, le=10)] = 1
    """Further passes over the retryable failures after the last chunk."""
    chunk_attempts: Annotated[int, Field(ge=0, le=100)] = 4
    """Prefect task retries of a chunk that has pending rows."""
    chunk_delay_s: Annotated[Seconds, Field(gt=0, le=3600)] = 15.0
    """Time before the first retry of a chunk; doubled for each further retry, with jitter."""


class Timeouts(_Model):
    """Timeouts after which an attempt ends."""

    connect_s: Annotated[Seconds, Field(gt=0, le=300)] = 15.0
    """Maximum time to open a connection, in seconds or as `1m`."""
    read_s: Annotated[Seconds, Field(gt=0, le=3600)] = 30.0
    """Maximum time without a byte."""
    total_s: Annotated[Seconds, Field(gt=0, le=86400)] = 600.0
    """Maximum time for one download or one upload of an object: seconds, or `30m`, `2h`. Each 8 MiB of it add as much again, if the source says how long it is."""
