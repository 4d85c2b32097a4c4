"""Mapping of the JSON API's errors, and of google-auth's exceptions, to Ferry's errors."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import NamedTuple

from ferry.core import Fatal, ObjectError
from ferry.http import parse_retry_after
from ferry.storage.errors import Meaning, credentials_error, store_error

_REASON = re.compile(r"[A-Za-z]{1,40}")
_RIGHT = re.compile(r"\b(?:storage|cloudkms|serviceusage)\.[a-zA-Z]{1,30}\.[a-zA-Z]{1,30}\b")
_BUSY = ("rateLimitExceeded", "RateLimitExceeded", "quotaExceeded", "dailyLimitExceeded", "slowDown")
_CREDENTIALS = {"accountDisabled", "authError", "UserProjectAccountProblem"}
_OAUTH_ERROR = re.compile(r"\b(?:invalid|unauthorized|access)_[a-z]{2,20}\b")  # RFC 6749 section 5.2


class JsonError(NamedTuple):
    """What Ferry reads of an error: never its free text."""

    reason: str  # `notFound`, or ""
    right: str  # the permission that is missing (`storage.objects.create`), or ""
    missing: str  # of a 404: "object", "bucket" or ""


def parse_error(body: bytes) -> JsonError:
    """Returns the parts of an error document (JSON API: "HTTP status and error codes")."""
    try:
        error = json.loads(body)["error"]
        text, listed = str(error.get("message", "")), error.get("errors") or [{}]
        reason = str(listed[0].get("reason", ""))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return JsonError("", "", "")
    right = _RIGHT.search(text)
    missing = "object" if text.startswith("No such object") else "bucket" if "bucket does not exist" in text else ""
    return JsonError(reason if _REASON.fullmatch(reason) else "", right[0] if right else "", missing)


def code_of(error: JsonError) -> str:
    """Returns what a message shows of an error: its reason, and the permission that is missing."""
    return f"{error.reason}: {error.right}".strip(": ")


def meaning(status: int, error: JsonError) -> Meaning:
    """Returns what a status and an error mean. The first matching row decides:

    | status, reason | meaning |
    |---|---|
    | 429, rateLimitExceeded, userRateLimitExceeded, quotaExceeded, dailyLimitExceeded | busy |
    | 3xx | elsewhere |
    | 401 authError: the token has ended or is not valid | credentials |
    | 403 accountDisabled, UserProjectAccountProblem: billing | credentials |
    | other 401, 403: forbidden, required (an anonymous caller), retentionPolicyNotMet | refused |
    | 404, `The specified bucket does not exist` | no bucket |
    | 404, `No such object` | no object |
    | any other | other |

    Both kinds of 404 have the reason notFound, so the text decides. A 404 with another text may come from a proxy.
    """
    if status == 429 or error.reason.endswith(_BUSY):
        return Meaning.BUSY
    if 300 <= status < 400:
        return Meaning.ELSEWHERE
    if error.reason in _CREDENTIALS:
        return Meaning.CREDENTIALS
    if status in (401, 403):
        return Meaning.REFUSED
    if status == 404 and error.missing:
        return Meaning.NO_BUCKET if error.missing == "bucket" else Meaning.NO_OBJECT
    return Meaning.OTHER


def gcs_error(status: int, body: bytes, side: str, retry_after: str | None = None) -> ObjectError | Fatal:
    """Returns the error for a response: :func:`meaning` in the words of ferry/storage/errors.py."""
    error = parse_error(body)
    retry_after_s = parse_retry_after(retry_after, datetime.now(UTC))
    return store_error(meaning(status, error), status, code_of(error), side, retry_after_s)


def refusal(status: int, error: JsonError, what: str) -> str | None:
    """Returns why a bucket cannot be used, as the end of a sentence, or None. ``what`` was tried.

    | response | the bucket |
    |---|---|
    | 200, 201 | can be used |
    | 404 | does not exist |
    | 401, 403 about the credentials or billing | refuses the credentials |
    | other 401, 403 | refuses what was tried; names the permission that is missing |
    | any other | answered ... |
    """
    if status in (200, 201):
        return None
    answer = f"HTTP {status} {error.reason}".rstrip()
    means = meaning(status, error)
    if status == 404:
        return "does not exist. Create it, or correct its address in the job"
    if means is Meaning.CREDENTIALS:
        return f"refuses these credentials ({answer}). Check them and the project's billing"
    if means is Meaning.REFUSED:
        needed = f"They need the permission `{error.right}`" if error.right else "Check the bucket's policy"
        return f"refuses {what} with these credentials ({answer}). {needed}"
    return f"answered {answer} to the check of {what}. Check its address and its settings"


def google_error(exc: BaseException) -> ObjectError | Fatal:
    """Returns the error for an exception of google-auth, or of a service that it asks. The first matching row decides:

    | exception | error |
    |---|---|
    | DefaultCredentialsError, OSError, ValueError, KeyError: no credentials, or a file that is not valid | Fatal |
    | RefreshError with a code of OAuth 2.0 (invalid_grant: revoked, or this machine's clock is wrong) | Fatal |
    | any other: the service does not answer | store_error |
    """
    from google.auth import exceptions

    if isinstance(exc, (exceptions.DefaultCredentialsError, OSError, ValueError, KeyError)):
        return Fatal(
            f"no usable Google credentials were found ({type(exc).__name__}). Set GOOGLE_APPLICATION_CREDENTIALS to a "
            "credentials file, or run `gcloud auth application-default login`"
        )
    code = _OAUTH_ERROR.search(str(exc)) if isinstance(exc, exceptions.RefreshError) else None
    if code is not None:
        return Fatal(
            f"Google refuses to renew the credentials ({code[0]}). Check that the key or the login is still valid, and "
            "this machine's clock, then run the job again"
        )
    return credentials_error(exc, "Google")
