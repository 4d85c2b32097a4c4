"""The nouns: rows, outcomes, statuses, error classes. Everything else imports this; it imports nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """What became of a row. All but ``pending`` are settled; ``dropped`` is never of a row that the list has."""

    PENDING = "pending"
    COPIED = "copied"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    FAILED = "failed"
    REMOVED = "removed"  # of a row that left the list: its copy was deleted, or is not ours any more (prune.py)


class Reason(StrEnum):
    """Why a row stands in a chunk."""

    NEW = "new"
    CHANGED = "changed"
    RETRY = "retry"
    REVALIDATE = "revalidate"
    REPAIR = "repair"


class Checked(StrEnum):
    """How a settled row's object was looked at the last time."""

    BODY = "body"  # its bytes were read
    BODY_AGAIN = "body_again"  # likewise, although it had not changed and a condition was sent
    CONDITION = "condition"  # the origin answered 304
    HEAD = "head"  # a HEAD told nothing new
    SIZE = "size"  # likewise of an object whose ETag changes by itself: by its size, and its date where it has one


class Confirmed(StrEnum):
    """What was compared before the object at the destination was said to have a row's bytes."""

    DIGEST = "digest"  # a digest that the store answered with: SHA-256, MD5, or the MD5s of the parts
    READ_BACK = "read_back"  # the bytes were read from the destination, and hashed
    SIZE = "size"  # the number of bytes alone


class Again(StrEnum):
    """When a failure of some class may be tried again."""

    NOW = "now"  # within this run, and by every later run
    NEXT_RUN = "next_run"  # by the next run, not within this one
    NEVER = "never"  # only when the user asks: --retry-failed


class ErrorClass(StrEnum):
    """Why a row failed, was skipped, or waits. docs/reference/state.md says each in plain words."""

    # the origin answered, and not with the object
    NOT_FOUND = "not_found"
    GONE = "gone"
    FORBIDDEN = "forbidden"
    CLIENT_ERROR = "client_error"
    REDIRECT_LOOP = "redirect_loop"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    # the way to the origin
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
    # the row itself, found while planning
    BAD_URL = "bad_url"
    BAD_KEY = "bad_key"
    BAD_LINE = "bad_line"
    KEY_COLLISION = "key_collision"
    DUPLICATE = "duplicate"
    # found by `ferry verify`
    MISSING = "missing"
    ALTERED = "altered"
    # an exception that errors.py does not know: a bug of ours, kept to its row
    INTERNAL = "internal"


def class_problem(name: str) -> str | None:
    """What is wrong with the name of an error class (or a status code) that somebody asks for; None if nothing."""
    if name in set(ErrorClass) or re.fullmatch(r"[1-5]\d\d", name):
        return None
    near = get_close_matches(name, list(ErrorClass), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(ErrorClass)}, and status codes"
    return f"`{name}` is no error class; {hint}"


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
    ErrorClass.BLOCKED_ADDRESS: Again.NEVER,
    ErrorClass.TRUNCATED: Again.NOW,
    ErrorClass.NOT_IMAGE: Again.NEVER,
    ErrorClass.BAD_ENCODING: Again.NEVER,
    ErrorClass.TOO_LARGE: Again.NEVER,
    ErrorClass.DIGEST_MISMATCH: Again.NEVER,
    ErrorClass.STORE_ERROR: Again.NOW,
    ErrorClass.UPLOAD_UNCONFIRMED: Again.NOW,
    ErrorClass.EXISTS: Again.NEVER,
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
    """One object to move, as a chunk file holds it. A tuple, as outcomes are: made in a third of a dataclass's time.

    ``source`` is byte for byte what to ask for (it may carry a signature: never print it, use
    :func:`ferry.core.redaction.redact`). ``key`` is the full destination key under the destination's
    prefix; with ``deferred_key`` it is a template that still names ``{sha256}`` or ``{ext}``.
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
    consecutive_failures: int = 0  # runs before this one that it failed in, one after the other


class Outcome(NamedTuple):
    """What became of one row in one attempt; one line of the ledger (columns: docs/reference/state.md)."""

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
    chunk: str  # digest of the chunk file; "" for outcomes of planning and of verify
    settings_digest: str  # first 16 digits of the job's "how" fingerprint
    manifest_digest: str | None = None  # what the list said of the object (tables.said_of); None where it said nothing
    checked_by: Checked | None = None  # how the object was looked at, where that went well
    bytes_read_at: datetime | None = None  # when its bytes were read
    consecutive_failures: int = 0  # runs in a row that this row failed in, this one included
    confirmed: Confirmed | None = None  # of what is copied or unchanged; None where an earlier Ferry wrote it


@dataclass(slots=True)
class TransferResult:
    """The good ends of a row. Failures are ObjectErrors."""

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
    bytes_read_at: datetime | None = None  # when the bytes were read, where that was not now
    confirmed: Confirmed | None = None


PARTS_DIRECTORY = ".ferry-parts"  # unfinished files; those of killed runs are deleted by the next run of the same job
