"""Error classes and the mapping of foreign exceptions: complete, and without foreign text in messages."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from pathlib import Path

import pytest

from ferry.core.errors import (
    AddressBlocked,
    BodyCut,
    ChunkIncomplete,
    Disconnected,
    Fatal,
    FerryError,
    LeaseHeld,
    NotHttp,
    ObjectError,
    Refused,
    UserError,
    disk_error,
)
from ferry.core.records import AGAIN, Again, ErrorClass
from ferry.http.errors import from_origin, from_status
from ferry.planning.errors import from_planning
from ferry.state.error_words import PLAIN_WORDS, REMEDIES
from ferry.storage.errors import from_store_http
from ferry.storage.s3.errors import store_status

E = ErrorClass
ROOT = Path(__file__).parents[3]
SECRET = "https://me:topsecret@h.example/x?Signature=topsecret <Error>topsecret body</Error>"

# error classes of transfers, planning and verify
TERMINAL = {
    E.NOT_FOUND, E.GONE, E.CLIENT_ERROR, E.REDIRECT_LOOP, E.NOT_IMAGE, E.BAD_ENCODING, E.TOO_LARGE,
    E.DIGEST_MISMATCH, E.EXISTS, E.LOST_ATTRIBUTE, E.BAD_URL, E.BAD_KEY, E.BAD_LINE, E.KEY_COLLISION, E.DUPLICATE,
}  # fmt: skip
NEXT_RUN = {E.FORBIDDEN, E.BLOCKED_ADDRESS, E.MISSING, E.ALTERED, E.INTERNAL}


@pytest.mark.parametrize("cls", ErrorClass)
def test_each_class_says_when_again(cls: ErrorClass) -> None:
    """Each error class is retried now, in the next run or never, as the tables above list it."""
    expected = Again.NEVER if cls in TERMINAL else Again.NEXT_RUN if cls in NEXT_RUN else Again.NOW
    assert AGAIN[cls] is expected
    assert ObjectError(cls, "x").again is expected


@pytest.mark.parametrize("cls", ErrorClass)
def test_each_class_has_plain_words(cls: ErrorClass) -> None:
    """Each error class has a phrase of its own for reports."""
    assert PLAIN_WORDS[cls].strip()
    assert REMEDIES[cls].strip()
    assert list(PLAIN_WORDS.values()).count(PLAIN_WORDS[cls]) == 1


@pytest.mark.parametrize("cls", ErrorClass)
def test_each_class_is_documented(cls: ErrorClass) -> None:
    """docs/reference/state.md lists each error class."""
    assert f"`{cls}`" in (ROOT / "docs/reference/state.md").read_text()


def test_no_class_is_left_over() -> None:
    """No table lists an error class that no longer exists."""
    assert set(AGAIN) == set(PLAIN_WORDS) == set(ErrorClass)


STATUSES = {
    **dict.fromkeys((404,), E.NOT_FOUND),
    **dict.fromkeys((410,), E.GONE),
    **dict.fromkeys((401, 403, 407), E.FORBIDDEN),
    **dict.fromkeys((408, 425), E.TIMEOUT),
    **dict.fromkeys((429,), E.RATE_LIMITED),
    **dict.fromkeys(
        (100, 101, 204, 300, 304, 400, 402, 405, 406, 409, 411, 414, 416, 418, 422, 451, 499), E.CLIENT_ERROR
    ),
    **dict.fromkeys((500, 501, 502, 503, 504, 520, 599, 600, 999), E.SERVER_ERROR),
}


@pytest.mark.parametrize("status", STATUSES)
def test_what_a_status_means(status: int) -> None:
    """Each status maps to its class; the error keeps status and Retry-After, and its message names the status."""
    error = from_status(status, retry_after_s=3.0)
    assert error.error_class is STATUSES[status]
    assert (error.status_code, error.retry_after_s) == (status, 3.0)
    assert f"(HTTP {status})" in error.message


def test_errors_are_ferrys() -> None:
    """All of Ferry's errors share one base class; an ObjectError is neither Fatal nor a UserError."""
    for cls in (UserError, LeaseHeld, Fatal, ObjectError, ChunkIncomplete, AddressBlocked):
        assert issubclass(cls, FerryError)
    assert not issubclass(ObjectError, (Fatal, UserError))
    error = ChunkIncomplete("a" * 64, 3, "why")
    assert (error.pending, error.why) == (3, "why")
    assert "3 rows pending: why" in str(error)


ORIGIN: list[tuple[BaseException, ErrorClass]] = [
    (TimeoutError(SECRET), E.TIMEOUT),
    (TimeoutError(), E.TIMEOUT),
    (ssl.SSLError(1, SECRET), E.TLS),
    (ssl.SSLCertVerificationError(1, SECRET), E.TLS),
    (NotHttp(SECRET), E.CONNECTION),
    (Disconnected(SECRET), E.CONNECTION),
    (BodyCut(SECRET), E.TRUNCATED),
    (socket.gaierror(socket.EAI_NONAME, SECRET), E.DNS),
    (ConnectionResetError(errno.ECONNRESET, SECRET), E.CONNECTION),
    (BrokenPipeError(errno.EPIPE, SECRET), E.CONNECTION),
    (AddressBlocked("127.0.0.1 is a private address"), E.BLOCKED_ADDRESS),
    (ValueError(SECRET), E.INTERNAL),
    (KeyError(SECRET), E.INTERNAL),
]


@pytest.mark.parametrize(("exc", "cls"), ORIGIN, ids=lambda value: type(value).__name__)
def test_what_an_origin_raises(exc: BaseException, cls: ErrorClass) -> None:
    """Each exception maps to its class, and none of its text reaches the message."""
    error = from_origin(exc)
    assert isinstance(error, ObjectError)
    assert error.error_class is cls
    assert "topsecret" not in str(error)
    assert error.message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_spool_disk_is_fatal(number: int) -> None:
    """A full or read-only disk is Fatal in every mapping: the run fails, not the object."""
    for error in (
        from_origin(OSError(number, "x")),
        from_store_http(OSError(number, "x"), "destination"),
        disk_error(OSError(number, "x"), "w"),
    ):
        assert isinstance(error, Fatal)


def test_what_is_mapped_stays_as_it_is() -> None:
    """Mapping an error of Ferry returns the same error."""
    for error in (ObjectError(E.GONE, "x"), Fatal("x")):
        assert from_origin(error) is error
        assert from_store_http(error, "destination") is error


REFUSALS = [
    (403, "AccessDenied", Refused, "the bucket's policy"),
    (403, "", Refused, "the bucket's policy"),
    (401, "Unauthorized", Refused, "the bucket's policy"),
    (403, "InvalidAccessKeyId", Fatal, "Check `credentials`"),
    (403, "SignatureDoesNotMatch", Fatal, "Check `credentials`"),
    (403, "AllAccessDisabled", Fatal, "Check `credentials`"),
    (400, "AuthorizationHeaderMalformed", Fatal, "Check `credentials`"),
    (400, "InvalidToken", Fatal, "Check `credentials`"),
    (400, "ExpiredToken", Fatal, "Renew them"),
    (403, "ExpiredToken", Fatal, "Renew them"),
    (403, "RequestTimeTooSkewed", Fatal, "clock"),
]


@pytest.mark.parametrize(("status", "code", "kind", "words"), REFUSALS)
def test_a_store_that_refuses_us(status: int, code: str, kind: type[Fatal], words: str) -> None:
    """A refusal by the destination ends the run with a remedy; one by the source fails the row until the next run."""
    error = store_status(status, code, "destination")
    assert type(error) is kind
    assert words in str(error)
    assert f"HTTP {status} {code}".rstrip() in str(error)
    at_source = store_status(status, code, "source")
    assert isinstance(at_source, ObjectError)
    assert (at_source.error_class, at_source.status_code) == (E.FORBIDDEN, status)


FULL = [
    (507, ""), (507, "XMinioStorageFull"), (403, "QuotaExceeded"), (400, "XMinioAdminBucketQuotaExceeded"),
    (403, "StorageQuotaExceeded"), (403, "StorageCapExceeded"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code"), FULL)
def test_a_store_that_is_full(status: int, code: str) -> None:
    """A full store is reported as full, not as refused credentials, whatever the status."""
    error = store_status(status, code, "destination")
    assert type(error) is Fatal
    assert "is full" in str(error)
    assert isinstance(store_status(status, code, "source"), ObjectError)


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "KeyTooLongError"), (400, "InvalidArgument"), (400, "EntityTooLarge"), (409, "OperationAborted"),
     (500, "InternalError"), (503, "ServiceUnavailable"), (405, "MethodNotAllowed"), (412, "PreconditionFailed")],
)  # fmt: skip
def test_what_is_of_one_object_is_no_end_of_the_run(status: int, code: str) -> None:
    """An error of the destination that concerns one object does not end the run."""
    assert isinstance(store_status(status, code, "destination"), ObjectError)


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (401, ""), (404, ""), (404, "NoSuchBucket")])
def test_a_source_that_refuses_is_the_rows_failure(status: int, code: str) -> None:
    """A source bucket that refuses fails the row as an HTTP origin does, with a status for the circuit breaker."""
    error = store_status(status, code, "source")
    assert isinstance(error, ObjectError)
    assert error.error_class is (E.NOT_FOUND if status == 404 else E.FORBIDDEN)
    assert error.status_code == (404 if status == 404 else status)


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (OSError(errno.ENOSPC, "Error writing bytes"), "no space left"),  # Arrow's
        (OSError(errno.EROFS, "Read-only"), "read-only"),
        (RuntimeError('IO Error: Could not write file "x": No space left on device'), "no space left"),  # DuckDB's
        (RuntimeError("Invalid Input Error"), None),
        (OSError(errno.EIO, "broken"), None),
    ],
)
def test_what_planning_raises(exc: Exception, text: str | None) -> None:
    """A full or read-only disk during planning is Fatal and names the state; other exceptions are not mapped."""
    known = from_planning(exc, "/srv/state")
    assert (known is None) if text is None else (text in str(known) and "/srv/state" in str(known))


def test_only_errors_py_names_foreign_exceptions() -> None:
    """Only a module named errors.py catches exceptions of foreign clients."""
    for path in (ROOT / "ferry").rglob("*.py"):
        foreign = r"except[^:\n]*\b(?:botocore|urllib3)\.[^:\n]*"
        named = re.findall(foreign, path.read_text())
        assert not named or path.name == "errors.py", (path, named)
