"""Rules for the buckets of a job: one provider on each side, and which settings that provider has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from ferry.core import Bucket, short
from ferry.job.validators import CREDENTIALS


class Settings(Protocol):
    """What both sides of a job have."""

    @property
    def endpoint_url(self) -> str | None: ...
    @property
    def region(self) -> str | None: ...
    @property
    def credentials(self) -> str | None: ...


def check_side(side: str, named: Sequence[tuple[str, Bucket]], settings: Settings) -> None:
    """Raises ValueError for buckets of a side that its credentials do not open, or for settings that they lack.

    ``side`` is source or destination, ``named`` has the names of its settings with their buckets.
    """
    if named:
        _refuse_two_owners(side, named)
        _refuse_foreign_settings(side, named[0][1], settings)


def _refuse_two_owners(side: str, named: Sequence[tuple[str, Bucket]]) -> None:
    """Raises ValueError unless one set of credentials opens all buckets.

    | buckets | |
    |---|---|
    | of one provider, at Azure of one account | allowed |
    | of two providers, or of two accounts | refused |
    """
    setting, first = named[0]
    other = next(((name, bucket) for name, bucket in named if bucket.owner != first.owner), None)
    if other is not None:
        state = "set `state` to a directory or to a bucket there"
        raise ValueError(
            f"{other[0]} is at `{other[1].owner}`, but {setting} at `{first.owner}`: Ferry opens both with "
            f"`{side}.credentials`; {state if side == 'destination' else 'divide the rows among several jobs'}"
        )


def _refuse_foreign_settings(side: str, bucket: Bucket, settings: Settings) -> None:
    """Raises ValueError for a setting that the bucket's provider does not have."""
    scheme = f"{bucket.provider}://"
    if settings.region is not None and bucket.provider != "s3":
        raise ValueError(f"{side}.region is a setting of `s3://` buckets, and this one is `{scheme}`; remove it")
    pattern, forms = CREDENTIALS[bucket.provider]
    if settings.credentials is not None and not pattern.fullmatch(settings.credentials):
        raise ValueError(
            f"{side}.credentials for `{scheme}` are {forms}; "
            "without the key Ferry looks for them where the work runs (docs/reference/job.md)"
        )
    path = urlsplit(settings.endpoint_url or "").path.strip("/")
    if path and path != bucket.account:
        may = f"may have `/{bucket.account}`, the account" if bucket.account else "has none"
        raise ValueError(f"{side}.endpoint_url has the path `/{short(path)}`, but for `{scheme}` it {may}")
