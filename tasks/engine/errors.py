"""The errors of Ferry, and the only place that knows foreign exceptions.

An error of one object is an :class:`ObjectError`: it becomes an outcome and ends nothing else. :class:`Fatal` stops the
run and leaves rows pending. :class:`UserError` is found before anything moves (exit 2). :class:`LeaseHeld` is exit 3.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl

import obstore.exceptions as store_errors

from tasks.engine.objects import AGAIN, Again, ErrorClass


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

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said  # `HTTP 403 AccessDenied`


class Stopped(FerryError):
    """The run was asked to stop, and what was under way is not needed any more."""


class AddressBlocked(FerryError, OSError):
    """The address filter refuses to connect. An OSError: what makes sockets may raise it."""


class NotHttp(FerryError):
    """What a server sent is no HTTP/1.1, or its header is too long."""


class Disconnected(FerryError, ConnectionError):
    """A connection ended before any answer came."""


class Dripping(FerryError, TimeoutError):
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
        self.nobody_there = False  # at the destination, for any row: not this one's failure
        self.body_sha256: str | None = None  # of the whole body that came, where one did

    @property
    def again(self) -> Again:
        return AGAIN[self.error_class]


def from_status(status: int, *, retry_after_s: float | None = None) -> ObjectError:
    """The error that an HTTP status of the origin stands for (SEMANTICS: error classes).

    | status | class | again |
    |---|---|---|
    | 404 / 410 | not_found / gone | never |
    | 401, 403, 407 | forbidden | next run |
    | 408, 425 | timeout | now |
    | 429 | rate_limited | now |
    | other 4xx, 1xx, 3xx without a target | client_error | never |
    | 5xx and unknown | server_error | now |
    """
    if status == 404:
        cls, text = ErrorClass.NOT_FOUND, "the origin has no such object"
    elif status == 410:
        cls, text = ErrorClass.GONE, "the origin says that the object is gone for good"
    elif status in (401, 403, 407):
        cls, text = ErrorClass.FORBIDDEN, "the origin refuses access"
    elif status in (408, 425):
        cls, text = ErrorClass.TIMEOUT, "the origin gave up waiting"
    elif status == 429:
        cls, text = ErrorClass.RATE_LIMITED, "the origin asks to slow down"
    elif status < 500:
        cls, text = ErrorClass.CLIENT_ERROR, "the origin does not accept the request"
    else:
        cls, text = ErrorClass.SERVER_ERROR, "the origin is in trouble"
    return ObjectError(cls, f"{text} (HTTP {status})", status_code=status, retry_after_s=retry_after_s)


_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def disk_error(exc: OSError, what: str) -> Fatal:
    """A Fatal for a failing local disk, naming what was being written."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Fatal(f"{what}: no space left on the disk. Free some space and run the job again; nothing is lost.")
    if exc.errno == errno.EROFS:
        return Fatal(f"{what}: the disk is read-only.")
    return Fatal(f"{what}: {exc.strerror or exc}")


def from_planning(exc: Exception, state: str) -> Fatal | None:
    """Maps what DuckDB and Arrow raise while the state at ``state`` is planned, counted or folded.

    Arrow sets errno; DuckDB only repeats strerror(3) in its text. What is not known here is a bug: None.
    """
    if isinstance(exc, OSError) and exc.errno in _DISK_ERRNOS:
        return disk_error(exc, f"state {state}")
    for number in _DISK_ERRNOS:
        if os.strerror(number) in str(exc):
            return disk_error(OSError(number, os.strerror(number)), f"state {state}")
    return None


def from_origin(exc: BaseException) -> ObjectError | Fatal:
    """Maps what wire.py, ssl and the socket layer raise while an object is fetched.

    A spool disk that is full is Fatal. What is not known here is ``internal``: a bug, kept to its row.
    """
    if isinstance(exc, (ObjectError, Fatal)):
        return exc
    if isinstance(exc, AddressBlocked):
        return ObjectError(ErrorClass.BLOCKED_ADDRESS, str(exc))
    if isinstance(exc, Dripping):
        return ObjectError(ErrorClass.TIMEOUT, str(exc))
    if isinstance(exc, TimeoutError):
        return ObjectError(ErrorClass.TIMEOUT, "the origin did not answer in time")
    if isinstance(exc, ssl.SSLError):
        return ObjectError(ErrorClass.TLS, "the TLS connection failed: " + _tls_reason(exc))
    if isinstance(exc, socket.gaierror):
        return ObjectError(ErrorClass.DNS, "the origin's host name does not resolve")
    if isinstance(exc, BodyCut):
        return ObjectError(ErrorClass.TRUNCATED, "the body ended before it was complete")
    if isinstance(exc, NotHttp):
        return ObjectError(ErrorClass.CONNECTION, "the origin's answer is not HTTP, or its header is too long")
    if isinstance(exc, OSError) and exc.errno in _DISK_ERRNOS:
        return disk_error(exc, "spool file")
    if isinstance(exc, OSError):
        return ObjectError(ErrorClass.CONNECTION, f"the connection to the origin failed ({_short(exc)})")
    return ObjectError(ErrorClass.INTERNAL, f"unexpected {type(exc).__name__} while fetching; please report it")


def died_unanswered(exc: BaseException) -> bool:
    """Whether a connection that was open ended before any answer: often one that idled too long.

    RFC 9112 section 9.3.1: a GET may then be sent again at once, on another connection.
    """
    return isinstance(exc, (Disconnected, ConnectionResetError, BrokenPipeError))


def _tls_reason(exc: BaseException) -> str:
    return str(getattr(exc, "verify_message", "") or getattr(exc, "reason", "") or type(exc).__name__)


def _short(exc: BaseException) -> str:
    number = getattr(exc, "errno", None)
    return errno.errorcode.get(number, type(exc).__name__) if isinstance(number, int) else type(exc).__name__


def from_store(exc: BaseException, *, side: str = "destination") -> ObjectError | Fatal:
    """Maps what obstore raises. ``side`` is ``destination`` or ``source``.

    Refused credentials and a missing bucket are Fatal at the destination; at the source they are the row's own failure.
    obstore's texts quote addresses and response bodies, so none of them is passed on.
    """
    if isinstance(exc, (ObjectError, Fatal)):
        return exc
    at_source = side == "source"
    code = _S3_CODE.search(_without_debug(exc))
    if isinstance(exc, (store_errors.PermissionDeniedError, store_errors.UnauthenticatedError)):
        if at_source:
            return ObjectError(ErrorClass.FORBIDDEN, "the source bucket refuses access", status_code=403)
        status = 401 if isinstance(exc, store_errors.UnauthenticatedError) else 403
        return store_status(status, code[1] if code else "", side)
    if isinstance(exc, (store_errors.NotFoundError, FileNotFoundError)):
        if at_source:
            return ObjectError(ErrorClass.NOT_FOUND, "the source has no such object", status_code=404)
        return store_status(404, code[1] if code else "", side)
    if isinstance(exc, store_errors.InvalidPathError):
        return ObjectError(ErrorClass.BAD_KEY, "the store cannot hold such a key")
    if isinstance(exc, TimeoutError):
        return ObjectError(ErrorClass.TIMEOUT, f"the {side} did not answer in time")
    if isinstance(exc, OSError) and not isinstance(exc, store_errors.BaseError):
        if exc.errno in _DISK_ERRNOS:
            return disk_error(exc, side)
        return ObjectError(ErrorClass.STORE_ERROR, f"the {side} failed ({_short(exc)})")
    if isinstance(exc, store_errors.BaseError):
        return _generic_store_error(str(exc), side)
    return ObjectError(ErrorClass.INTERNAL, f"unexpected {type(exc).__name__} at the {side}; please report it")


def from_folder(exc: OSError, side: str) -> ObjectError | Fatal:
    """Maps what the operating system says of a file in a directory that is a source or the destination.

    | errno | at the destination | at the source |
    |---|---|---|
    | ENOSPC, EDQUOT, EROFS | Fatal | Fatal (nobody writes there: the spool) |
    | ENOENT | Fatal: the directory is gone | not_found |
    | ENOTDIR, EISDIR, ELOOP | key_collision: a file, a folder or a link is in the way | not_found |
    | EACCES, EPERM | Refused: a Fatal, unless other keys are taken | forbidden |
    | ENAMETOOLONG, EINVAL, EILSEQ | bad_key | not_found |
    | any other | store_error | store_error |
    """
    at_source = side == "source"
    if exc.errno in _DISK_ERRNOS:
        return disk_error(exc, side)
    if exc.errno in (errno.EACCES, errno.EPERM):
        if at_source:
            return ObjectError(ErrorClass.FORBIDDEN, "no right to read this file", status_code=403)
        return Refused(
            f"the {side} directory does not let this user write ({_short(exc)}). Check the rights of the directory",
            _short(exc),
        )
    if isinstance(exc, FileNotFoundError) and not at_source:
        return Fatal(f"the {side} does not exist (any more). Create the directory or correct `{side}`")
    if exc.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP) and not at_source:
        return ObjectError(
            ErrorClass.KEY_COLLISION,
            "a file or a link stands where this key needs a directory, or the reverse; links are not written through",
        )
    if exc.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ) and not at_source:
        return ObjectError(ErrorClass.BAD_KEY, f"the directory's file system cannot hold such a name ({_short(exc)})")
    if exc.errno == errno.ELOOP:
        return ObjectError(ErrorClass.NOT_FOUND, "a link leads out of the source's root: it is not followed")
    if exc.errno in _NO_SUCH_FILE:
        return ObjectError(ErrorClass.NOT_FOUND, "the source has no such object", status_code=404)
    return ObjectError(ErrorClass.STORE_ERROR, f"the {side} failed ({_short(exc)})")


_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
_HTTP_STATUS = re.compile(r"status code: (\d{3})")
_S3_CODE = re.compile(r"<Code>(\w+)</Code>")


def _without_debug(exc: BaseException | str) -> str:
    return str(exc).partition("\n\nDebug source")[0]


def _generic_store_error(text: str, side: str) -> ObjectError | Fatal:
    """obstore reports throttling and 5xx as one error whose status stands only in the text.

    The part after "Debug source" names settings, and keys may hold any words: only the places where obstore writes a
    status, S3 an error code and the system an error number are read.
    """
    head = _without_debug(text)
    found, code = _HTTP_STATUS.search(head), _S3_CODE.search(head)
    name = code.group(1) if code else ""
    if "(os error 28)" in head:
        return Fatal(f"the {side} is full: no space left")
    if "(os error 20)" in head or "(os error 21)" in head:  # ENOTDIR, EISDIR
        if side == "source":
            return ObjectError(ErrorClass.NOT_FOUND, "the source has no such object", status_code=404)
        return ObjectError(ErrorClass.KEY_COLLISION, "a file stands where this key needs a directory, or the reverse")
    if found is None:
        if "operation timed out" in head or "deadline has elapsed" in head:
            return ObjectError(ErrorClass.TIMEOUT, f"the {side} did not answer in time")
        return ObjectError(ErrorClass.STORE_ERROR, f"the connection to the {side} failed")
    return store_status(int(found.group(1)), name, side)


# What a store says of the one who asks, and not of what was asked for (S3 API, error responses; Ceph's UserSuspended).
_NOBODY = {
    "AccountProblem", "AllAccessDisabled", "AuthorizationHeaderMalformed", "InvalidAccessKeyId", "InvalidClientTokenId",
    "InvalidSecurity", "InvalidToken", "NotSignedUp", "SignatureDoesNotMatch", "UserSuspended",
}  # fmt: skip
_EXPIRED = frozenset({"ExpiredToken", "TokenRefreshRequired"})
_FULL = ("StorageFull", "QuotaExceeded", "CapExceeded")  # XMinioStorageFull, XMinioAdminBucketQuotaExceeded, ...


def store_status(status: int, code: str, side: str, retry_after_s: float | None = None) -> ObjectError | Fatal:
    """The error that a store's HTTP status and S3 error code stand for; the first row that fits.

    | status, code | at the destination | at the source |
    |---|---|---|
    | 429, SlowDown | rate_limited | rate_limited |
    | 3xx | Fatal: the bucket is elsewhere | Fatal |
    | ...StorageFull, ...QuotaExceeded, 507 | Fatal | store_error |
    | ExpiredToken, RequestTimeTooSkewed | Fatal | forbidden |
    | InvalidAccessKeyId, SignatureDoesNotMatch, ... | Fatal | forbidden |
    | other 401, 403: AccessDenied | Refused: a Fatal, unless other keys are taken | forbidden |
    | 404 | NoSuchBucket: Fatal; NoSuchKey: not_found; else store_error: a proxy's, perhaps | not_found |
    | any other | store_error | store_error |
    """
    shown = f"the {side} answered HTTP {status}" + (f" ({code})" if code else "")
    said = f"HTTP {status} {code}".rstrip()
    at_source = side == "source"
    if status == 429 or code.startswith("SlowDown"):  # "SlowDownRead", "SlowDownWrite": MinIO's
        return ObjectError(ErrorClass.RATE_LIMITED, shown, status_code=status, retry_after_s=retry_after_s)
    if 300 <= status < 400:
        return Fatal(f"{shown}: the bucket is at another endpoint. Correct `endpoint_url` and `region`")
    if (status == 507 or code.endswith(_FULL)) and not at_source:
        return Fatal(
            f"the {side} is full: no space left, or its quota is used up ({said}). "
            "Make room there, and run the job again; nothing is lost"
        )
    about_us = code in _NOBODY or code in _EXPIRED or code == "RequestTimeTooSkewed"
    if status in (401, 403) or about_us:
        if at_source:
            return ObjectError(ErrorClass.FORBIDDEN, f"{shown}: access is refused", status_code=status)
        if code in _EXPIRED:
            return Fatal(
                f"the {side} says that the credentials have expired ({said}). Renew them, and run the job again"
            )
        if code == "RequestTimeTooSkewed":
            return Fatal(f"the {side} says that this machine's clock is wrong ({said}). Set it, and run the job again")
        text = f"the {side} refuses the credentials ({said}). Check `credentials` and the bucket's policy"
        return Fatal(text) if about_us else Refused(text, said)
    if status == 404:
        if at_source or code == "NoSuchKey":
            return ObjectError(ErrorClass.NOT_FOUND, f"the {side} has no such object", status_code=404)
        if code == "NoSuchBucket":
            return Fatal(f"the {side} does not exist (any more). Create the bucket or correct `{side}`")
    return ObjectError(ErrorClass.STORE_ERROR, shown, status_code=status, retry_after_s=retry_after_s)


def s3_code(body: bytes) -> str:
    """The error code in an S3 error document; "" where there is none (S3 API, error responses)."""
    return found[1] if (found := _S3_CODE.search(body.decode("utf-8", "replace"))) else ""


def credentials_error(exc: BaseException) -> ObjectError:
    """boto3's chain could not renew credentials that expire: a metadata service or a login that does not answer."""
    return ObjectError(ErrorClass.STORE_ERROR, f"the AWS credentials could not be renewed ({type(exc).__name__})")


def from_store_http(exc: BaseException, side: str) -> ObjectError | Fatal:
    """Maps what is raised while it talks to a store: as from an origin, in the store's name."""
    error = from_origin(exc)
    if not isinstance(error, ObjectError) or error is exc:
        return error
    if error.error_class is ErrorClass.TIMEOUT:
        return ObjectError(ErrorClass.TIMEOUT, f"the {side} did not answer in time")
    if error.error_class is ErrorClass.TRUNCATED and side == "source":
        return error
    if error.error_class is ErrorClass.INTERNAL:
        return ObjectError(ErrorClass.INTERNAL, f"unexpected {type(exc).__name__} at the {side}; please report it")
    return ObjectError(ErrorClass.STORE_ERROR, f"the connection to the {side} failed ({_short(exc)})")
