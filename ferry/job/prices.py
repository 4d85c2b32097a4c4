"""Prices, for the money that `ferry check` predicts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ferry.job.base import Model

_Price = Annotated[float, Field(ge=0, le=1_000_000)]


class Prices(Model):
    """Prices of the stores, for `ferry check`. Defaults: list prices of Amazon S3 Standard, us-east-1, of 2025."""

    currency: Annotated[str, Field(max_length=10)] = "USD"
    """The currency, as it is printed."""
    put_per_1000: _Price = 0.005
    """Price of 1,000 PUT, COPY or LIST requests."""
    get_per_1000: _Price = 0.0004
    """Price of 1,000 GET or HEAD requests."""
    egress_per_gb: _Price = 0.09
    """Price of 1 GB (10^9 bytes) read from a source bucket over the internet. 0 within one region."""
    storage_per_gb_month: _Price = 0.023
    """Price of storing 1 GB (10^9 bytes) for a month."""
