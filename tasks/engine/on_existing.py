"""What an object that stands under a row's key means (SEMANTICS: keys, on_existing). Pure."""

from __future__ import annotations

from typing import Literal

from tasks.engine.found import Found, md5_of_etag
from tasks.engine.job import OnExisting
from tasks.engine.objects import Reason, Row

Step = Literal["fetch", "skip", "unchanged"]


def before_fetch(policy: OnExisting, row: Row, found: Found | None) -> Step:
    """What an existing object means before anything is downloaded (SEMANTICS: keys, on_existing).

    | policy | object | evidence of sameness | step |
    |---|---|---|---|
    | any | none | | fetch |
    | overwrite | any | | fetch |
    | any | there | the row names a sha256, and no ETag is one | as without evidence |
    | skip-same, skip, fail | there | manifest's md5 = single-part ETag, sizes do not differ | unchanged |
    | skip-same, skip, fail | there | source's ETag = its ETag, both MD5s (bucket to bucket) | unchanged |
    | skip | there | none | skip |
    | skip-same, fail | there | none (a size proves difference only) | fetch |
    """
    if found is None or policy is OnExisting.OVERWRITE:
        return "fetch"
    there = md5_of_etag(found.etag)
    claimed = row.md5 or md5_of_etag(row.etag if row.source.startswith("s3://") else None)
    if there is not None and there == claimed and row.size in (None, found.size) and row.sha256 is None:
        return "unchanged"
    return "skip" if policy is OnExisting.SKIP else "fetch"


def after_fetch(policy: OnExisting, same: bool) -> Literal["put", "skip", "unchanged", "exists"]:
    """What an existing object means once the body is here.

    | policy | equal bytes | other bytes |
    |---|---|---|
    | skip-same | unchanged | put |
    | skip | unchanged | skip |
    | fail | unchanged | exists |
    | overwrite | put | put |
    """
    if policy is OnExisting.OVERWRITE:
        return "put"
    if same:
        return "unchanged"
    return {OnExisting.SKIP: "skip", OnExisting.FAIL: "exists"}.get(policy, "put")  # type: ignore[return-value]


def policy_for(policy: OnExisting, row: Row) -> OnExisting:
    """What verify found altered is written again whatever the policy: the object there is not the row's.

    A repair of attempt 1 is of a row that its chunk left out: nothing is known of its key, the policy holds.
    """
    return OnExisting.OVERWRITE if row.reason is Reason.REPAIR and row.attempt > 1 else policy
