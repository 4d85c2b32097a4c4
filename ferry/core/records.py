"""Rows, outcomes, statuses and error classes. This module imports nothing of Ferry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """The state of a row. All but ``pending`` are final; ``removed`` is only for rows removed from the manifest."""

    PENDING = "pending"
    COPIED = "copied"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    FAILED = "failed"
    REMOVED = "removed"  # removed from the manifest: its copy was deleted, or is no longer Ferry's (prune.py)


class Reason(StrEnum):
    """Why a row is in a chunk."""

    NEW = "new"
    CHANGED = "changed"
    RETRY = "retry"
    REVALIDATE = "revalidate"
    REPAIR = "repair"


class Checked(StrEnum):
    """How Ferry last checked the object of a done row."""

    BODY = "body"  # Ferry read its bytes
    BODY_AGAIN = "body_again"  # Ferry sent a condition, and the origin sent the unchanged body all the same
    CONDITION = "condition"  # the origin answered 304
    HEAD = "head"  # a HEAD response showed no change
    SIZE = "size"  # as HEAD, but the ETag changes by itself: size and date were compared


class Confirmed(StrEnum):
    """The evidence that the object at the destination has the row's bytes."""

    DIGEST = "digest"  # a digest in the store's response: SHA-256, MD5, or the MD5s of the parts
    READ_BACK = "read_back"  # Ferry read the bytes from the destination and hashed them
    SIZE = "size"  # only the number of bytes


class Again(StrEnum):
    """When a failure of some class may be retried."""

    NOW = "now"  # within this run, and in every later run
    NEXT_RUN = "next_run"  # in the next run, not within this one
    NEVER = "never"  # only when the user asks: --retry-failed


class ErrorClass(StrEnum):
    """Why a row failed, was skipped or is pending. docs/reference/state.md explains each class."""

    # the origin answered without the object
    NOT_FOUND = "not_found"
    GONE = "gone"
    FORBIDDEN = "forbidden"
    CLIENT_ERROR = "client_error"
    REDIRECT_LOOP = "redirect_loop"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    # the network between Ferry and the origin
    TIMEOUT = "timeout"
    DNS = "dns"
    TLS = "tls"
    CONNECTION = "connection"
    BLOCKED_ADDRESS = "blocked_address"
    # the body
    TRUNCATED = "truncated"
    NOT_IMAGE = "not_image"
    BAD_ENCODING = "bad_encoding"
    TOO_LARGE = "too_large"
    DIGEST_MISMATCH = "digest_mismatch"
    # the destination
    STORE_ERROR = "store_error"
    UPLOAD_UNCONFIRMED = "upload_unconfirmed"
    EXISTS = "exists"
    LOST_ATTRIBUTE = "lost_attribute"
    # the row itself, found during planning
    BAD_URL = "bad_url"
    BAD_KEY = "bad_key"
    BAD_LINE = "bad_line"
    KEY_COLLISION = "key_collision"
    DUPLICATE = "duplicate"
    # found by `ferry verify`
    MISSING = "missing"
    ALTERED = "altered"
    # an exception that no errors.py maps: a bug in Ferry, limited to its row
    INTERNAL = "internal"


def class_problem(name: str) -> str | None:
    """Return None for the name of an error class or an HTTP status code, else what is wrong with it."""
    if name in set(ErrorClass) or re.fullmatch(r"[1-5]\d\d", name):
        return None
    near = get_close_matches(name, list(ErrorClass), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(ErrorClass)}, and status codes"
    return f"`{name}` is not an error class; {hint}"


AGAIN: dict[ErrorClass, Again] = {
    ErrorClass.NOT_FOUND: Again.NEVER,
    ErrorClass.GONE: Again.NEVER,
    ErrorClass.FORBIDDEN: Again.NEXT_RUN,
    ErrorClass.CLIENT_ERROR: Again.NEVER,
    ErrorClass.REDIRECT_LOOP: Again.NEVER,
    ErrorClass.RATE_LIMITED: Again.NOW,
    ErrorClass.SERVER_ERROR: Again.NOW,
    ErrorClass.TIMEOUT: Again.NOW,
    ErrorClass.DNS: Again.NOW,
    ErrorClass.TLS: Again.NOW,
    ErrorClass.CONNECTION: Again.NOW,
    ErrorClass.BLOCKED_ADDRESS: Again.NEXT_RUN,  # costs no request; the job may allow the address by then
    ErrorClass.TRUNCATED: Again.NOW,
    ErrorClass.NOT_IMAGE: Again.NEVER,
    ErrorClass.BAD_ENCODING: Again.NEVER,
    ErrorClass.TOO_LARGE: Again.NEVER,
    ErrorClass.DIGEST_MISMATCH: Again.NEVER,
    ErrorClass.STORE_ERROR: Again.NOW,
    ErrorClass.UPLOAD_UNCONFIRMED: Again.NOW,
    ErrorClass.EXISTS: Again.NEVER,
    ErrorClass.LOST_ATTRIBUTE: Again.NEVER,
    ErrorClass.BAD_URL: Again.NEVER,
    ErrorClass.BAD_KEY: Again.NEVER,
    ErrorClass.BAD_LINE: Again.NEVER,
    ErrorClass.KEY_COLLISION: Again.NEVER,
    ErrorClass.DUPLICATE: Again.NEVER,
    ErrorClass.MISSING: Again.NEXT_RUN,
    ErrorClass.ALTERED: Again.NEXT_RUN,
    ErrorClass.INTERNAL: Again.NEXT_RUN,
}


class Row(NamedTuple):
    """One object to transfer, as a chunk file holds it. A tuple, because it is made in a third of a dataclass's time.

    ``source`` is the exact URL to request. It may hold a signature: print it only through
    :func:`ferry.core.redaction.redact`. ``key`` is the full key below the destination's prefix. With ``deferred_key``
    it is a template that still contains ``{sha256}`` or ``{ext}``.
    """

    row_id: str
    source: str
    key: str
    deferred_key: bool = False
    size: int | None = None
    md5: str | None = None  # 32 lower-case hex digits
    sha256: str | None = None  # 64 lower-case hex digits
    content_type: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    id: str | None = None
    reason: Reason = Reason.NEW
    attempt: int = 1
    consecutive_failures: int = 0  # runs in a row, before this one, in which the row failed
    alternatives: Sequence[str] | None = None  # further addresses of the object, exact as ``source``
    storage_class: str | None = None  # in a listing of the source


class Outcome(NamedTuple):
    """The result of one attempt at a row: one line of the ledger (columns: docs/reference/state.md)."""

    row_id: str
    source: str  # redacted
    key: str
    id: str | None
    status: Status
    error_class: ErrorClass | None
    status_code: int | None
    message: str | None
    retryable: bool
    reason: Reason
    attempt: int
    requests: int
    size: int | None
    md5: str | None
    sha256: str | None
    content_type: str | None
    source_etag: str | None
    source_last_modified: str | None
    dest_etag: str | None
    started_at: datetime
    recorded_at: datetime
    run_no: int
    chunk: str  # digest of the chunk file; "" for outcomes of planning and verify
    settings_digest: str  # first 16 hex digits of the digest of the settings that affect transfers
    manifest_digest: str | None = None  # of what the manifest says about the object; None if it says nothing
    checked_by: Checked | None = None  # how the object was checked, if that succeeded
    bytes_read_at: datetime | None = None  # when Ferry read its bytes
    consecutive_failures: int = 0  # runs in a row in which this row failed, including this run
    confirmed: Confirmed | None = (
        None  # for copied and unchanged rows; None if an earlier version of Ferry wrote the outcome
    )
    address: str | None = None  # redacted: which of several gave the bytes, or failed; None for ``source`` itself
    copy_of: str | None = None  # with `dedupe`: the key whose object was not transferred again for this row
    attributes_sha256: str | None = None  # of the attributes that Ferry wrote (attributes_digest); None if not known
    lost_attributes: Sequence[str] | None = None  # names of attributes that the destination cannot hold


@dataclass(slots=True)
class TransferResult:
    """The result of a row that did not fail. Failures are ObjectErrors."""

    status: Status
    key: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    content_type: str | None = None
    source_etag: str | None = None
    source_last_modified: str | None = None
    dest_etag: str | None = None
    error_class: ErrorClass | None = None
    message: str | None = None
    requests: int = 0
    bytes_read: int = 0
    checked_by: Checked = Checked.BODY
    bytes_read_at: datetime | None = None  # if the bytes were not read in this attempt: when they were
    confirmed: Confirmed | None = None
    copy_of: str | None = None  # as in Outcome
    attributes_sha256: str | None = None
    lost_attributes: Sequence[str] | None = None


PARTS_DIRECTORY = ".ferry-parts"  # for unfinished files; the next run of the job deletes those of killed runs
