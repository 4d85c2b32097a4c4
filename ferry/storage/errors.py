"""Mapping of the errors of object stores, their clients and file systems to Ferry's error classes."""

from __future__ import annotations

import errno
from enum import Enum, auto
from typing import Literal

from ferry.core import DISK_ERRNOS, ErrorClass, Fatal, ObjectError, ProxyError, Refused, disk_error, errno_name
from ferry.http import from_origin


def from_folder(exc: OSError, side: str) -> ObjectError | Fatal:
    """Maps an error of the operating system for a file in a source or destination directory.

    | errno | at the destination | at the source |
    |---|---|---|
    | ENOSPC, EDQUOT, EROFS | Fatal | Fatal: the spool is full or read-only, since Ferry writes nothing at a source |
    | ENOENT | Fatal: the directory does not exist | not_found |
    | ENOTDIR, EISDIR, ELOOP | key_collision: a file, a directory or a link has the name | not_found |
    | EACCES, EPERM | Refused: Fatal, unless the destination accepts other keys | forbidden |
    | ENAMETOOLONG, EINVAL, EILSEQ | bad_key | not_found |
    | any other | store_error | store_error |
    """
    at_source = side == "source"
    if exc.errno in DISK_ERRNOS:
        return disk_error(exc, side)
    if exc.errno in (errno.EACCES, errno.EPERM):
        if at_source:
            return ObjectError(
                ErrorClass.FORBIDDEN, "this user may not read the file. Change its permissions", status_code=403
            )
        return Refused(
            f"this user may not write to the {side} directory ({errno_name(exc)}). Change its permissions",
            errno_name(exc),
        )
    if isinstance(exc, FileNotFoundError) and not at_source:
        return Fatal(f"the {side} directory does not exist. Create it, or correct `{side}`")
    if exc.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP) and not at_source:
        return ObjectError(
            ErrorClass.KEY_COLLISION,
            "the key needs a directory where a file or a link exists, or a file where a directory exists. "
            "Ferry does not write through links",
        )
    if exc.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ) and not at_source:
        return ObjectError(
            ErrorClass.BAD_KEY, f"the destination's file system does not accept this name ({errno_name(exc)})"
        )
    if exc.errno == errno.ELOOP:
        return ObjectError(ErrorClass.NOT_FOUND, "a link points outside the source root; Ferry does not follow it")
    if exc.errno in _NO_SUCH_FILE:
        return ObjectError(ErrorClass.NOT_FOUND, "the source has no such object", status_code=404)
    return ObjectError(ErrorClass.STORE_ERROR, f"the {side} failed ({errno_name(exc)})")


_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}


class Meaning(Enum):
    """What a store's status and error code mean. Each provider has its own table of them."""

    BUSY = auto()
    ELSEWHERE = auto()  # the bucket is at another endpoint
    FULL = auto()
    EXPIRED = auto()  # the credentials
    CLOCK = auto()  # this machine's clock is wrong
    CREDENTIALS = auto()  # refused, whatever the request
    REFUSED = auto()  # this request
    NO_BUCKET = auto()
    NO_OBJECT = auto()
    OTHER = auto()


def store_error(
    means: Meaning,
    status: int,
    code: str,
    side: str,
    retry_after_s: float | None = None,
    *,
    bucket: Literal["bucket", "container"] = "bucket",
) -> ObjectError | Fatal:
    """Returns the error for what a response means. ``bucket`` is the provider's word.

    | meaning | at the destination | at the source |
    |---|---|---|
    | busy | rate_limited | rate_limited |
    | elsewhere | Fatal | Fatal |
    | full | Fatal | store_error |
    | expired, clock, credentials | Fatal | forbidden |
    | refused | Refused: Fatal, unless the destination accepts other keys | forbidden |
    | no bucket | Fatal | not_found |
    | no object | not_found | not_found |
    | other | store_error; also for 404, since a proxy may send it | store_error; for 404 not_found |
    """
    answer = f"the {side} answered HTTP {status}" + (f" ({code})" if code else "")
    status_and_code = f"HTTP {status} {code}".rstrip()
    at_source = side == "source"
    if means is Meaning.BUSY:
        return ObjectError(ErrorClass.RATE_LIMITED, answer, status_code=status, retry_after_s=retry_after_s)
    if means is Meaning.ELSEWHERE:
        return Fatal(f"{answer}: the {bucket} is at another endpoint. Correct `endpoint_url` and `region`")
    if means is Meaning.FULL and not at_source:
        return Fatal(
            f"the {side} is full: no space left, or its quota is used up ({status_and_code}). "
            "Free some space or raise the quota, then run the job again"
        )
    if means in (Meaning.EXPIRED, Meaning.CLOCK, Meaning.CREDENTIALS, Meaning.REFUSED):
        if at_source:
            return ObjectError(
                ErrorClass.FORBIDDEN, f"{answer}: it refuses access. Check `source.credentials`", status_code=status
            )
        if means is Meaning.EXPIRED:
            return Fatal(
                f"the {side} answered that the credentials have expired ({status_and_code}). "
                "Renew them and run the job again"
            )
        if means is Meaning.CLOCK:
            return Fatal(
                f"the {side} answered that this machine's clock is wrong ({status_and_code}). "
                "Set the clock and run the job again"
            )
        text = f"the {side} refuses the credentials ({status_and_code}). Check `credentials` and the {bucket}'s policy"
        return Fatal(text) if means is Meaning.CREDENTIALS else Refused(text, status_and_code)
    if means is Meaning.NO_OBJECT or (at_source and (status == 404 or means is Meaning.NO_BUCKET)):
        return ObjectError(ErrorClass.NOT_FOUND, f"the {side} has no such object", status_code=404)
    if means is Meaning.NO_BUCKET:
        return Fatal(f"the {side} {bucket} does not exist ({status_and_code}). Create it, or correct `{side}`")
    return ObjectError(ErrorClass.STORE_ERROR, answer, status_code=status, retry_after_s=retry_after_s)


def credentials_error(exc: BaseException, provider: str = "AWS") -> ObjectError:
    """Returns the error for credentials that a provider's library could not renew: a metadata service may be down."""
    return ObjectError(
        ErrorClass.STORE_ERROR,
        f"the {provider} credentials could not be renewed ({type(exc).__name__}). Check how this machine gets them",
    )


def from_store_http(exc: BaseException, side: str) -> ObjectError | Fatal:
    """Maps an exception of Ferry's HTTP client as for an origin, with messages that name the store."""
    error = from_origin(exc)
    if not isinstance(error, ObjectError) or error is exc:
        return error
    if error.error_class is ErrorClass.TIMEOUT:
        return ObjectError(ErrorClass.TIMEOUT, f"the {side} did not answer in time")
    if error.error_class is ErrorClass.TRUNCATED and side == "source":
        return error
    if error.error_class is ErrorClass.DNS:
        text = f"the {side}'s host name does not resolve. Check `endpoint_url` and DNS"
        return ObjectError(ErrorClass.STORE_ERROR, text)
    if error.error_class is ErrorClass.TLS or isinstance(exc, ProxyError):
        found = ObjectError(ErrorClass.STORE_ERROR, error.message)
        found.outage = error.outage
        return found
    if error.error_class is ErrorClass.INTERNAL:
        return ObjectError(ErrorClass.INTERNAL, f"unexpected {type(exc).__name__} at the {side}; please report it")
    return ObjectError(ErrorClass.STORE_ERROR, f"the connection to the {side} failed ({errno_name(exc)})")


class ConditionUnsupported(Fatal):
    """The store answers HTTP 501 to a conditional PUT."""

    def __init__(self) -> None:
        super().__init__(
            "the destination does not support If-None-Match for PUT (HTTP 501), which `on_existing: skip` and "
            "`on_existing: fail` need. Set `on_existing: skip-same` or `on_existing: overwrite` and run the job again"
        )


def key_refused(refused: Refused, kind: Literal["head", "read", "write"]) -> ObjectError:
    """Returns the error for a key that the destination refuses while it accepts other keys."""
    verb, hint = "write", "Check its permissions, and whether a lock or the bucket's policy protects it"
    if kind != "write":
        verb = "read"
        hint = (
            "Check whether the object is encrypted with a key of another account. Without permission to list the "
            "bucket, S3 also answers 403 for a missing object"
        )
    text = f"the destination refuses to {verb} this key ({refused.answer}) but accepts others. {hint}"
    return ObjectError(ErrorClass.FORBIDDEN, text, status_code=403)
