"""What object stores, their clients and file systems answer or raise, as Ferry's errors."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Literal

import obstore.exceptions as store_errors
import urllib3.exceptions as raised

from ferry.core import DISK_ERRNOS, ErrorClass, Fatal, ObjectError, Refused, disk_error, errno_name
from ferry.http import from_origin


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
        if exc.errno in DISK_ERRNOS:
            return disk_error(exc, side)
        return ObjectError(ErrorClass.STORE_ERROR, f"the {side} failed ({errno_name(exc)})")
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
    if exc.errno in DISK_ERRNOS:
        return disk_error(exc, side)
    if exc.errno in (errno.EACCES, errno.EPERM):
        if at_source:
            return ObjectError(ErrorClass.FORBIDDEN, "no right to read this file", status_code=403)
        return Refused(
            f"the {side} directory does not let this user write ({errno_name(exc)}). Check the rights of the directory",
            errno_name(exc),
        )
    if isinstance(exc, FileNotFoundError) and not at_source:
        return Fatal(f"the {side} does not exist (any more). Create the directory or correct `{side}`")
    if exc.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP) and not at_source:
        return ObjectError(
            ErrorClass.KEY_COLLISION,
            "a file or a link stands where this key needs a directory, or the reverse; links are not written through",
        )
    if exc.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ) and not at_source:
        return ObjectError(
            ErrorClass.BAD_KEY, f"the directory's file system cannot hold such a name ({errno_name(exc)})"
        )
    if exc.errno == errno.ELOOP:
        return ObjectError(ErrorClass.NOT_FOUND, "a link leads out of the source's root: it is not followed")
    if exc.errno in _NO_SUCH_FILE:
        return ObjectError(ErrorClass.NOT_FOUND, "the source has no such object", status_code=404)
    return ObjectError(ErrorClass.STORE_ERROR, f"the {side} failed ({errno_name(exc)})")


_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
ALREADY_THERE = store_errors.AlreadyExistsError
NOT_FOUND = (store_errors.NotFoundError, FileNotFoundError)
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
    return ObjectError(ErrorClass.STORE_ERROR, f"the connection to the {side} failed ({errno_name(exc)})")


_ADDRESS = re.compile(r"(https?)://([A-Za-z0-9.-]+(?::[0-9]+)?)(?:/|\Z)")
_REGION = re.compile(r"[a-z0-9-]{1,40}")


def no_condition() -> Fatal:
    """The error of a store that answers 501 to a PUT that must not replace anything."""
    return Fatal(
        "the destination does not know the condition If-None-Match of a PUT (HTTP 501), which `on_existing: skip` and "
        "`on_existing: fail` need. Set `on_existing: skip-same` or `on_existing: overwrite`, and run the job again"
    )


def redirected(status: int, location: str | None, region: str | None, bucket: str, side: str) -> Fatal:
    """The error of a store that answers that its bucket is elsewhere (S3 API: PermanentRedirect, TemporaryRedirect).

    Ferry does not follow: a request signed for a host that only the answer names would hand it a valid signature. It
    says what to set instead, once for the run.
    """
    advice = "Correct `endpoint_url` and `region`"
    if found := _ADDRESS.match(location or ""):
        named = f"{found[1]}://{found[2].removeprefix(f'{bucket}.')}"
        advice = f"It names {named}: set `endpoint_url` to that, if you trust it"
    if region and _REGION.fullmatch(region):
        advice = f"Set `region: {region}`, and the `endpoint_url` of that region if you set one"
    return Fatal(f"the {side} answered HTTP {status}: the bucket {bucket} is at another endpoint. {advice}")


def key_refused(refused: Refused, kind: Literal["head", "read", "write"]) -> ObjectError:
    """The destination takes other keys: it is this one that it does not let us write, or read."""
    verb, hint = "have this key written", "is the object locked there, or the key left out by the bucket's policy?"
    if kind != "write":
        verb = "show this key"
        hint = (
            "is it encrypted with a key of another account? Without the right to list the bucket, S3 answers so of "
            "what is not there, too"
        )
    said = f"the destination refuses to {verb} ({refused.answer}), and takes others: {hint}"
    return ObjectError(ErrorClass.FORBIDDEN, said, status_code=403)


HTTP_ERRORS = (raised.HTTPError, OSError)


def from_urllib3(exc: BaseException, side: str) -> ObjectError | Fatal:
    """Maps urllib3's errors; its texts quote addresses, so none of them is passed on.

    | raised | class |
    |---|---|
    | TimeoutError (connect, read) | timeout |
    | NameResolutionError | store_error, which names DNS |
    | IncompleteRead, ProtocolError, DecodeError | store_error: the connection |
    | SSLError | as ssl's own, in the store's name |
    | ProxyError | store_error, which names the proxy |
    | any OSError | as of the socket |
    """
    if isinstance(exc, raised.NameResolutionError):
        return ObjectError(ErrorClass.STORE_ERROR, f"the {side}'s host name does not resolve")
    if isinstance(exc, raised.ProxyError):
        return ObjectError(ErrorClass.STORE_ERROR, f"the proxy before the {side} does not answer")
    if isinstance(exc, raised.TimeoutError):
        return ObjectError(ErrorClass.TIMEOUT, f"the {side} did not answer in time")
    if isinstance(exc, OSError):
        return from_store_http(exc, side)
    inner = next((each for each in (exc.__cause__, exc.__context__) if isinstance(each, OSError)), None)
    if inner is not None:
        return from_store_http(inner, side)
    return ObjectError(ErrorClass.STORE_ERROR, f"the connection to the {side} failed ({type(exc).__name__})")


@contextlib.contextmanager
def mapped_errors(side: str) -> Iterator[None]:
    """obstore's errors become Ferry's."""
    try:
        yield
    except NOT_FOUND:
        raise ObjectError(ErrorClass.NOT_FOUND, f"the {side} has no such object", status_code=404) from None
    except ObjectError:
        raise
    except Exception as exc:  # noqa: BLE001 - from_store knows them
        raise from_store(exc, side=side) from None
