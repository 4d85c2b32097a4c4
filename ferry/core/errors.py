"""The exception classes of Ferry, and the mapping of disk errors.

An :class:`ObjectError` concerns one object: it becomes an outcome, and the run continues. :class:`Fatal` stops the run
and leaves rows pending. :class:`UserError` is raised before the first transfer (exit 2). :class:`LeaseHeld` is exit 3.
"""

from __future__ import annotations

import errno

from ferry.core.records import AGAIN, Again, ErrorClass


class FerryError(Exception):
    """Base class of all errors that Ferry raises on purpose. Its text is for the user."""


class UserError(FerryError):
    """The job, the manifest, the state or an endpoint is unusable, and nothing was transferred. Exit 2."""


class NewerVersion(UserError):
    """A newer version of Ferry wrote the state."""


class Damaged(UserError):
    """A state file is damaged: its content differs from what Ferry wrote."""


class LeaseHeld(FerryError):
    """Another run holds the lease of this job's state. Exit 3."""


class Fatal(FerryError):
    """The run cannot continue: destination, credentials, state or spool disk fail. Rows stay pending."""


class MachineFatal(Fatal):
    """This machine cannot continue: its disk, or its way to the state or the destination. Another machine may."""


class Unreachable(MachineFatal):
    """The store of the state does not answer now; :class:`ferry.state.PatientState` waits for it."""


class Refused(Fatal):
    """The destination refuses a write: every write, or this key alone (Store.put tests which)."""

    def __init__(self, message: str, answer: str) -> None:
        super().__init__(message)
        self.answer = answer  # `HTTP 403 AccessDenied`


class Stopped(FerryError):
    """The run was asked to stop, and the result of this work is no longer needed."""


class AddressBlocked(FerryError, OSError):
    """The address filter refuses to connect. A subclass of OSError, because a socket factory may raise it."""


class ProxyError(FerryError, OSError):
    """A proxy does not answer, or does not connect to a host. The text names the proxy without its password.

    ``status`` is that of its answer. ``away`` means that it does not answer at all, which concerns all its hosts.
    """

    def __init__(self, message: str, status: int | None = None, *, away: bool = False) -> None:
        super().__init__(message)
        self.status, self.away = status, away


class ProxyUnusable(Fatal):
    """A proxy refuses the credentials, or has not answered for too long. The text names it without its password."""


class NotHttp(FerryError):
    """The response is not valid HTTP/1.1, or its header is too long."""


class Disconnected(FerryError, ConnectionError):
    """The connection ended before the response."""


class LowSpeed(FerryError, TimeoutError):
    """The body arrives too slowly; the text states the limit."""


class BodyCut(FerryError):
    """The connection ended in the middle of a response body."""


class ChunkIncomplete(FerryError):
    """A chunk still has pending rows. Prefect retries the task, which transfers them.

    With ``hopeless`` it does not: no host of these rows has answered a single request for a minute.
    """

    def __init__(self, chunk: str, pending: int, why: str, *, hopeless: bool = False) -> None:
        super().__init__(f"chunk {chunk[:12]}: {pending} rows pending: {why}")
        self.chunk, self.pending, self.why, self.hopeless = chunk, pending, why, hopeless


class ProcessLost(FerryError):
    """A worker process ended during a chunk. Its recorded outcomes count; the other rows are planned again."""


class ObjectError(FerryError):
    """The transfer of one object failed. ``message`` is text for the user and holds no secret."""

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
        self.requests = requests  # HTTP requests that this attempt made
        self.no_response = False  # True: the host sent nothing, not even a status
        self.at_destination = False  # True: the upload failed, not the source
        self.outage = False  # True: the destination or a proxy does not answer at all, which is not this row's failure
        self.body_sha256: str | None = None  # of the complete body, if one was received

    @property
    def again(self) -> Again:
        """When this failure may be retried."""
        return AGAIN[self.error_class]


DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def disk_error(exc: OSError, what: str) -> MachineFatal:
    """Return the error for a failing local disk. ``what`` names the file that Ferry read or wrote."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineFatal(
            f"{what}: no space left on the disk. Free some space and run the job again; nothing is lost."
        )
    if exc.errno == errno.EROFS:
        return MachineFatal(f"{what}: the file system is read-only. Make it writable and run the job again.")
    return MachineFatal(f"{what}: {exc.strerror or exc}")


def errno_name(exc: BaseException) -> str:
    """Return the symbolic name of the exception's errno (`ECONNREFUSED`), or else the name of its class."""
    number = getattr(exc, "errno", None)
    return errno.errorcode.get(number, type(exc).__name__) if isinstance(number, int) else type(exc).__name__
