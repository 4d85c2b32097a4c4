"""Decisions about an object that exists under a row's key, by `on_existing` and by the row's earlier uploads."""

from __future__ import annotations

from typing import Literal

from ferry.core import Again, ErrorClass, ObjectError, Reason, Row, in_bucket
from ferry.job import OnExisting
from ferry.storage import ObjectInfo, md5_of_etag

Step = Literal["fetch", "skip", "unchanged"]
GUARDED = (OnExisting.SKIP, OnExisting.FAIL)  # they must not replace a key that was written since the plan


def before_fetch(policy: OnExisting, row: Row, found: ObjectInfo | None) -> Step:
    """Returns what to do before a download, given the object ``found`` under the key.

    | policy | object | evidence that it is the same | step |
    |---|---|---|---|
    | any | none | | fetch |
    | overwrite | any | | fetch |
    | any | exists | the row has a sha256, which no ETag is | as without evidence |
    | skip-same, skip, fail | exists | manifest's md5 = single-part ETag, sizes do not differ | unchanged |
    | skip-same, skip, fail | exists | source's ETag = its ETag, both MD5s (bucket to bucket) | unchanged |
    | skip | exists | none | skip |
    | skip-same, fail | exists | none (a size can only show a difference) | fetch |
    """
    if found is None or policy is OnExisting.OVERWRITE:
        return "fetch"
    existing = found.known_md5
    expected = row.md5 or md5_of_etag(row.etag if in_bucket(row.source) else None)
    if existing is not None and existing == expected and row.size in (None, found.size) and row.sha256 is None:
        return "unchanged"
    return "skip" if policy is OnExisting.SKIP else "fetch"


def after_fetch(policy: OnExisting, same: bool) -> Literal["put", "skip", "unchanged", "exists"]:
    """Returns what to do after a download, when an object exists under the key.

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
    """Returns OVERWRITE for a repair, whose key has another object than the row's, and else the job's policy.

    A repair of attempt 1 is of a row whose chunk returned without it. Nothing is known of its key, so the policy holds.
    """
    return OnExisting.OVERWRITE if row.reason is Reason.REPAIR and row.attempt > 1 else policy


class UnconfirmedUploads:
    """The keys under which uploads of this run failed or got no response, by row.

    The policies `skip` and `fail` keep an existing object, but must not keep a bad upload of Ferry. An object with the
    row's bytes that an upload of this run may have written is `copied`, and not `unchanged`.
    """

    def __init__(self) -> None:
        self._failed: dict[str, str] = {}
        self._sent: dict[str, str] = {}

    def note_failed(self, row: Row, key: str) -> None:
        """Records that an upload of the row was not confirmed, so the key may have a bad object."""
        self._failed[row.row_id] = key

    def note_sent(self, row: Row, key: str) -> None:
        """Records that an upload of the row was sent, and that its response was lost or an error."""
        self._sent[row.row_id] = key

    def may_have_arrived(self, row: Row, key: str) -> bool:
        """Returns whether an upload of the row may have written this key."""
        return self._sent.get(row.row_id) == key

    def has_failed(self, row: Row, key: str) -> bool:
        """Returns whether an upload of the row under this key was not confirmed."""
        return self._failed.get(row.row_id) == key

    def forget(self, row: Row) -> None:
        """Removes the row's records."""
        self._failed.pop(row.row_id, None)
        self._sent.pop(row.row_id, None)

    def final_error(self, row: Row, error: ObjectError) -> ObjectError:
        """Returns the error with which a row fails, and removes the row's records.

        An upload that was not confirmed counts before a later timeout. So the next run knows that the object under the
        key may be a bad upload (:func:`ferry.planning.rules.reason_to_do`).
        """
        self._sent.pop(row.row_id, None)
        if self._failed.pop(row.row_id, None) is None or error.again is Again.NEVER:
            return error
        return ObjectError(
            ErrorClass.UPLOAD_UNCONFIRMED, f"an upload was not confirmed, and a later try failed: {error.message}",
            status_code=error.status_code, requests=error.requests,
        )  # fmt: skip
