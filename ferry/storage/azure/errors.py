"""Mapping of Azure Blob Storage's statuses and error codes to Ferry's errors."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from ferry.core import ErrorClass, Fatal, ObjectError
from ferry.http import parse_retry_after
from ferry.storage.azure.documents import date_of
from ferry.storage.errors import Meaning, store_error

CLOCK_S = 15 * 60  # REST API, "Authorize with Shared Key": older requests are refused
_BUSY = {"ServerBusy", "TooManyRequests"}
_FULL = ("QuotaExceeded", "CapacityExceeded", "CapacityLimitExceeded")
_CREDENTIALS = {
    "AccountIsDisabled", "AuthenticationFailed", "InsufficientAccountPermissions", "InvalidAuthenticationInfo",
    "KeyBasedAuthenticationNotPermitted", "NoAuthenticationInformation", "PublicAccessNotPermitted",
}  # fmt: skip
_NO_CONTAINER = {"ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"}
_ONE_BLOB = {  # about one blob: a policy, a lease or its tier protects it
    "BlobArchived", "BlobBeingRehydrated", "BlobImmutableDueToPolicy", "LeaseIdMissing", "SnapshotsPresent",
}  # fmt: skip
_BAD_KEY = {"InvalidResourceName", "InvalidUri", "OutOfRangeInput"}
_TIER = {"AccessTierNotSupportedForBlobType", "BlobTierInadequateForContentLength", "InvalidBlobTier"}
_METADATA = {"EmptyMetadataKey", "InvalidMetadata", "InvalidTagSet", "MetadataTooLarge"}


def code_of(headers: Mapping[str, str]) -> str:
    """Returns the error code of a response, which is a word, or "" (REST API: "Status and error codes")."""
    code = headers.get("x-ms-error-code", "")
    return code if code.isascii() and code.isalnum() else ""


def meaning(status: int, code: str) -> Meaning:
    """Returns what a status and an error code mean. The first matching row decides:

    | status, code | meaning |
    |---|---|
    | 429, ServerBusy | busy |
    | 3xx | elsewhere |
    | ...QuotaExceeded, ...CapacityExceeded, 507 | full |
    | AuthenticationFailed, AccountIsDisabled, InvalidAuthenticationInfo, ... | credentials |
    | BlobImmutableDueToPolicy, BlobArchived, LeaseIdMissing, SnapshotsPresent, ... | refused |
    | other 401, 403: AuthorizationFailure, AuthorizationPermissionMismatch, ... | refused |
    | ContainerNotFound, ContainerBeingDeleted, ContainerDisabled | no bucket |
    | BlobNotFound | no object |
    | any other | other |
    """
    if status == 429 or code in _BUSY:
        return Meaning.BUSY
    if 300 <= status < 400:
        return Meaning.ELSEWHERE
    if status == 507 or code.endswith(_FULL):
        return Meaning.FULL
    if code in _CREDENTIALS:
        return Meaning.CREDENTIALS
    if code in _ONE_BLOB or status in (401, 403):
        return Meaning.REFUSED
    if code in _NO_CONTAINER:
        return Meaning.NO_BUCKET
    return Meaning.NO_OBJECT if code == "BlobNotFound" else Meaning.OTHER


def not_authenticated(status: int, headers: Mapping[str, str]) -> bool:
    """Returns whether the credentials themselves were refused, which another token may mend."""
    return status == 401 or code_of(headers) == "AuthenticationFailed"


def condition_failed(status: int, headers: Mapping[str, str]) -> bool:
    """Returns whether If-None-Match or If-Match did not hold."""
    return (status, code_of(headers)) in ((409, "BlobAlreadyExists"), (412, "ConditionNotMet"))


def azure_error(
    status: int, headers: Mapping[str, str], side: str, ends_at: datetime | None = None
) -> ObjectError | Fatal:
    """Returns the error for a response. ``ends_at``: of the credentials, if they cannot be renewed.

    Of the response's text only the code is used. A refusal has reasons that its code does not name:

    | meaning | and | becomes |
    |---|---|---|
    | credentials, refused | the SAS has ended | expired |
    | credentials | the response's Date is more than 15 minutes away | clock |

    These codes have words of their own:

    | code | at the destination | at the source |
    |---|---|---|
    | InvalidBlobTier, ... | Fatal: the account does not have the tier | |
    | InvalidMetadata, MetadataTooLarge, InvalidTagSet, ... | client_error: the metadata of this row | |
    | InvalidResourceName, InvalidUri, OutOfRangeInput | bad_key | |
    | BlobArchived, BlobBeingRehydrated | | forbidden: the object is archived |

    All other rows are those of store_error in ferry/storage/errors.py.
    """
    code, now = code_of(headers), datetime.now(UTC)
    means = meaning(status, code)
    if means in (Meaning.CREDENTIALS, Meaning.REFUSED):
        date = date_of(headers.get("Date"))
        if ends_at is not None and ends_at <= now:
            means = Meaning.EXPIRED
        elif means is Meaning.CREDENTIALS and date is not None and abs((date - now).total_seconds()) > CLOCK_S:
            means = Meaning.CLOCK
    if side != "source" and status == 400:
        answer = f"HTTP {status} {code}"
        if code in _TIER:
            text = f"the {side} does not have the storage class ({answer})"
            return ObjectError(ErrorClass.CLIENT_ERROR, text, status_code=status)
        if code in _METADATA:
            text = f"the {side} does not accept the metadata or the tags of this object ({answer})"
            return ObjectError(ErrorClass.CLIENT_ERROR, text, status_code=status)
        if code in _BAD_KEY:
            text = f"the {side} does not accept this key ({answer})"
            return ObjectError(ErrorClass.BAD_KEY, text, status_code=status)
    if side == "source" and code in ("BlobArchived", "BlobBeingRehydrated"):
        text = f"the {side}'s object is archived (HTTP {status} {code}). Rehydrate it and run the job again"
        return ObjectError(ErrorClass.FORBIDDEN, text, status_code=status)
    retry_after_s = parse_retry_after(headers.get("Retry-After"), now)
    return store_error(means, status, code, side, retry_after_s, bucket="container")
