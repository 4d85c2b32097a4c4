"""What an object that stands under a row's key means (SEMANTICS: keys, on_existing). Pure."""

from __future__ import annotations

from typing import Literal

from ferry.core import Again, ErrorClass, ObjectError, Reason, Row
from ferry.job import OnExisting
from ferry.storage import ObjectInfo, md5_of_etag

Step = Literal["fetch", "skip", "unchanged"]


def before_fetch(policy: OnExisting, row: Row, found: ObjectInfo | None) -> Step:
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


class Unconfirmed:
    """By row. The policies `skip` and `fail` leave an object alone that is there: not what arrived of our own.

    An object with the row's bytes that an upload of this run may have put there is `copied`, and not `unchanged`.
    """

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._sent: dict[str, str] = {}

    def note(self, row: Row, key: str) -> None:
        self._keys[row.row_id] = key

    def note_sent(self, row: Row, key: str) -> None:
        """An upload of this row has begun under this key, and its answer did not come or was an error."""
        self._sent[row.row_id] = key

    def sent(self, row: Row, key: str) -> bool:
        """May an object of this row have arrived under this key?"""
        return self._sent.get(row.row_id) == key

    def forget(self, row: Row) -> None:
        self._keys.pop(row.row_id, None)
        self._sent.pop(row.row_id, None)

    def ours(self, row: Row, key: str) -> bool:
        """Did an upload of this row go wrong under this key?"""
        return self._keys.get(row.row_id) == key

    def last_word(self, row: Row, error: ObjectError) -> ObjectError:
        """What a row that is given up failed of. An upload that went wrong is not forgotten for a timeout that came
        later: the outcome tells the next run, too, whose object that is (plan.reason_to_do)."""
        self._sent.pop(row.row_id, None)
        if self._keys.pop(row.row_id, None) is None or error.again is Again.NEVER:
            return error
        return ObjectError(
            ErrorClass.UPLOAD_UNCONFIRMED, f"an upload was not confirmed, and then: {error.message}",
            status_code=error.status_code, requests=error.requests,
        )  # fmt: skip
