"""What a web server, TLS and sockets raise, as Ferry's errors."""

from __future__ import annotations

import socket
import ssl

from ferry.core import (
    DISK_ERRNOS,
    AddressBlocked,
    BodyCut,
    Disconnected,
    ErrorClass,
    Fatal,
    LowSpeed,
    NotHttp,
    ObjectError,
    disk_error,
    errno_name,
)


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


def from_origin(exc: BaseException) -> ObjectError | Fatal:
    """Maps what connection.py, ssl and the socket layer raise while an object is fetched.

    A spool disk that is full is Fatal. What is not known here is ``internal``: a bug, kept to its row.
    """
    if isinstance(exc, (ObjectError, Fatal)):
        return exc
    if isinstance(exc, AddressBlocked):
        return ObjectError(ErrorClass.BLOCKED_ADDRESS, str(exc))
    if isinstance(exc, LowSpeed):
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
    if isinstance(exc, OSError) and exc.errno in DISK_ERRNOS:
        return disk_error(exc, "spool file")
    if isinstance(exc, OSError):
        return ObjectError(ErrorClass.CONNECTION, f"the connection to the origin failed ({errno_name(exc)})")
    return ObjectError(ErrorClass.INTERNAL, f"unexpected {type(exc).__name__} while fetching; please report it")


def closed_before_response(exc: BaseException) -> bool:
    """Whether a connection that was open ended before any answer: often one that idled too long.

    RFC 9112 section 9.3.1: a GET may then be sent again at once, on another connection.
    """
    return isinstance(exc, (Disconnected, ConnectionResetError, BrokenPipeError))


def _tls_reason(exc: BaseException) -> str:
    return str(getattr(exc, "verify_message", "") or getattr(exc, "reason", "") or type(exc).__name__)
