"""Mapping of HTTP statuses and of exceptions of connections, TLS and sockets to Ferry's errors."""

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
    ProxyError,
    disk_error,
    errno_name,
)


def from_status(status: int, *, retry_after_s: float | None = None) -> ObjectError:
    """Return the error for an HTTP status of the origin.

    | status | class | retried |
    |---|---|---|
    | 404 / 410 | not_found / gone | never |
    | 401, 403, 407 | forbidden | next run |
    | 408, 425 | timeout | now |
    | 429 | rate_limited | now |
    | other 4xx, 1xx, 2xx, 3xx | client_error | never |
    | 5xx and unknown | server_error | now |
    """
    if status == 404:
        cls, text = ErrorClass.NOT_FOUND, "the origin has no such object"
    elif status == 410:
        cls, text = ErrorClass.GONE, "the origin says that the object was removed permanently"
    elif status in (401, 403, 407):
        cls, text = ErrorClass.FORBIDDEN, "the origin denies access"
    elif status in (408, 425):
        cls, text = ErrorClass.TIMEOUT, "the origin asks for the request to be sent again"
    elif status == 429:
        cls, text = ErrorClass.RATE_LIMITED, "the origin limits the request rate"
    elif status < 500:
        cls, text = ErrorClass.CLIENT_ERROR, "the origin rejects the request"
    else:
        cls, text = ErrorClass.SERVER_ERROR, "the origin reports a server error"
    return ObjectError(cls, f"{text} (HTTP {status})", status_code=status, retry_after_s=retry_after_s)


def from_origin(exc: BaseException) -> ObjectError | Fatal:
    """Return the error for an exception of connection.py, ssl or the socket layer during the fetch of an object.

    A failing spool disk is Fatal. An unknown exception is ``internal``: a bug in Ferry, limited to its row.
    """
    if isinstance(exc, (ObjectError, Fatal)):
        return exc
    if isinstance(exc, ProxyError):
        return _from_proxy(exc)
    if isinstance(exc, AddressBlocked):
        return ObjectError(ErrorClass.BLOCKED_ADDRESS, str(exc))
    if isinstance(exc, LowSpeed):
        return ObjectError(ErrorClass.TIMEOUT, str(exc))
    if isinstance(exc, TimeoutError):
        return ObjectError(ErrorClass.TIMEOUT, "the origin did not answer in time")
    if isinstance(exc, ssl.SSLError):
        return ObjectError(ErrorClass.TLS, _tls_words(exc))
    if isinstance(exc, socket.gaierror):
        return ObjectError(ErrorClass.DNS, "the origin's host name does not resolve")
    if isinstance(exc, BodyCut):
        return ObjectError(ErrorClass.TRUNCATED, "the body ended before it was complete")
    if isinstance(exc, NotHttp):
        return ObjectError(
            ErrorClass.CONNECTION, "the origin's response is not valid HTTP/1.1, or its header is too long"
        )
    if isinstance(exc, OSError) and exc.errno in DISK_ERRNOS:
        return disk_error(exc, "spool file")
    if isinstance(exc, OSError):
        return ObjectError(ErrorClass.CONNECTION, f"the connection to the origin failed ({errno_name(exc)})")
    return ObjectError(ErrorClass.INTERNAL, f"unexpected {type(exc).__name__} while fetching; please report it")


def closed_before_response(exc: BaseException) -> bool:
    """Return whether an open connection ended before the response, often because it was idle for too long.

    The client may then send a GET again at once on another connection (RFC 9112 section 9.3.1).
    """
    return isinstance(exc, (Disconnected, ConnectionResetError, BrokenPipeError))


# Verification errors of OpenSSL (x509_vfy.h) for an issuer that is not among the trusted ones.
_UNKNOWN_ISSUER = frozenset({18, 19, 20, 21})


def _tls_words(exc: ssl.SSLError) -> str:
    if message := getattr(exc, "verify_message", ""):  # of an SSLCertVerificationError that ssl has raised
        advice = "; set `network.ca_bundle`" if getattr(exc, "verify_code", 0) in _UNKNOWN_ISSUER else ""
        return f"the certificate is not trusted: {message}{advice}"
    return f"the TLS connection failed: {getattr(exc, 'reason', '') or type(exc).__name__}"


def _from_proxy(exc: ProxyError) -> ObjectError:
    """Return the error for a proxy that does not connect to a host.

    | the proxy | class | retried |
    |---|---|---|
    | does not answer | connection, as an outage: the row waits | now |
    | 4xx | forbidden: its rules do not allow the host | next run |
    | 5xx, or no HTTP | connection: the host, as the proxy sees it | now |
    """
    refused = exc.status is not None and exc.status < 500
    error = ObjectError(ErrorClass.FORBIDDEN if refused else ErrorClass.CONNECTION, str(exc))
    error.status_code = exc.status if refused else None
    error.outage = exc.away
    return error
