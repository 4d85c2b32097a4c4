"""The errors of Ferry, and the only place that knows foreign exceptions.

An error of one object is an :class:`ObjectError`: it becomes an outcome and ends nothing else. :class:`Fatal` stops the
run and leaves rows pending. :class:`UserError` is found before anything moves (exit 2). :class:`LeaseHeld` is exit 3.
"""

from __future__ import annotations

import errno

from ferry.core.records import AGAIN, Again, ErrorClass


class FerryError(Exception):
    """Any error that Ferry raises on purpose; its text is for the user."""


class UserError(FerryError):
    """The job, the manifest, the state or an endpoint is not usable; nothing has moved. Exit 2."""


class NewerVersion(UserError):
    """State that a newer Ferry wrote."""


class Damaged(UserError):
    """A state file that is not as it was written."""


class LeaseHeld(FerryError):
    """Another run holds this job's state. Exit 3."""


class Fatal(FerryError):
    """Nothing can go on: destination credentials or bucket, state or spool disk. Rows stay pending."""


class Refused(Fatal):
    """The destination says no to a write: to all of them, or under this key alone (Store.put finds out)."""

    def __init__(self, message: str, answer: str) -> None:
        super().__init__(message)
        self.answer = answer  # `HTTP 403 AccessDenied`


class Stopped(FerryError):
    """The run was asked to stop, and what was under way is not needed any more."""


class AddressBlocked(FerryError, OSError):
    """The address filter refuses to connect. An OSError: what makes sockets may raise it."""


class NotHttp(FerryError):
    """What a server sent is no HTTP/1.1, or its header is too long."""


class Disconnected(FerryError, ConnectionError):
    """A connection ended before any answer came."""


class LowSpeed(FerryError, TimeoutError):
    """A body comes too slowly; the text says what that means."""


class BodyCut(FerryError):
    """A connection ended in the middle of an answer's body."""


class ChunkIncomplete(FerryError):
    """A chunk still has pending rows; Prefect's task retry runs those."""

    def __init__(self, chunk: str, pending: int, why: str) -> None:
        super().__init__(f"chunk {chunk[:12]}: {pending} rows pending: {why}")
        self.chunk, self.pending, self.why = chunk, pending, why


class ProcessLost(FerryError):
    """An engine process ended in the middle of a chunk. What it recorded counts: the rest is planned anew."""


class ObjectError(FerryError):
    """One object could not be moved; ``message`` is a sentence for people, free of secrets."""

    def __init__(
        self,
        error_class: ErrorClass,
        message: str,
        *,
        status_code: int | None = None,
        retry_after_s: float | None = None,
        requests: int = 0,
    ) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message
        self.status_code = status_code
        self.retry_after_s = retry_after_s
        self.requests = requests  # HTTP requests that this try made
        self.at_destination = False  # did the upload fail, and not the source?
        self.destination_unreachable = False  # at the destination, for any row: not this one's failure
        self.body_sha256: str | None = None  # of the whole body that came, where one did

    @property
    def again(self) -> Again:
        return AGAIN[self.error_class]


DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def disk_error(exc: OSError, what: str) -> Fatal:
    """A Fatal for a failing local disk, naming what was being written."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Fatal(f"{what}: no space left on the disk. Free some space and run the job again; nothing is lost.")
    if exc.errno == errno.EROFS:
        return Fatal(f"{what}: the disk is read-only.")
    return Fatal(f"{what}: {exc.strerror or exc}")


def errno_name(exc: BaseException) -> str:
    number = getattr(exc, "errno", None)
    return errno.errorcode.get(number, type(exc).__name__) if isinstance(number, int) else type(exc).__name__
