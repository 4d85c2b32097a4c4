"""What an S3 store's status and error code mean."""

from __future__ import annotations

import re

from ferry.core import Fatal, ObjectError
from ferry.storage.errors import Meaning, store_error

_S3_CODE = re.compile(r"<Code>([\w.]+)</Code>")
_ADDRESS = re.compile(r"(https?)://([A-Za-z0-9.-]+(?::[0-9]+)?)(?:/|\Z)")
_REGION = re.compile(r"[a-z0-9-]{1,40}")

# Codes that concern the credentials and not the object (S3 API, error responses). UserSuspended is Ceph's,
# InvalidTokenId MinIO's.
_CREDENTIAL_ERRORS = {
    "AccountProblem", "AllAccessDisabled", "AuthorizationHeaderMalformed", "InvalidAccessKeyId", "InvalidClientTokenId",
    "InvalidSecurity", "InvalidToken", "InvalidTokenId", "NotSignedUp", "SignatureDoesNotMatch", "UserSuspended",
}  # fmt: skip
_EXPIRED = frozenset({"ExpiredToken", "TokenRefreshRequired"})
_FULL = ("StorageFull", "QuotaExceeded", "CapExceeded")  # XMinioStorageFull, XMinioAdminBucketQuotaExceeded, ...


def store_status(status: int, code: str, side: str, retry_after_s: float | None = None) -> ObjectError | Fatal:
    """Returns the error for a store's HTTP status and S3 error code. The first matching row decides:

    | status, code | meaning |
    |---|---|
    | 429, SlowDown | busy |
    | 3xx | elsewhere |
    | ...StorageFull, ...QuotaExceeded, 507 | full |
    | ExpiredToken | expired |
    | RequestTimeTooSkewed | clock |
    | InvalidAccessKeyId, SignatureDoesNotMatch, ... | credentials |
    | other 401, 403: AccessDenied | refused |
    | 404 NoSuchBucket, 404 NoSuchKey | no bucket, no object |
    | any other | other |
    """
    return store_error(_s3_meaning(status, code, side), status, code, side, retry_after_s)


def _s3_meaning(status: int, code: str, side: str) -> Meaning:
    if status == 429 or code.startswith("SlowDown"):  # MinIO also sends SlowDownRead, SlowDownWrite
        return Meaning.BUSY
    if 300 <= status < 400:
        return Meaning.ELSEWHERE
    if (status == 507 or code.endswith(_FULL)) and side != "source":
        return Meaning.FULL
    if code in _EXPIRED:
        return Meaning.EXPIRED
    if code == "RequestTimeTooSkewed":
        return Meaning.CLOCK
    if code in _CREDENTIAL_ERRORS or status in (401, 403):
        return Meaning.CREDENTIALS if code in _CREDENTIAL_ERRORS else Meaning.REFUSED
    if status == 404 and code in ("NoSuchBucket", "NoSuchKey"):
        return Meaning.NO_BUCKET if code == "NoSuchBucket" else Meaning.NO_OBJECT
    return Meaning.OTHER


def s3_code(body: bytes) -> str:
    """Returns the error code of an S3 error document, or "" if there is none (S3 API, error responses)."""
    return found[1] if (found := _S3_CODE.search(body.decode("utf-8", "replace"))) else ""


def redirected(status: int, location: str | None, region: str | None, bucket: str, side: str) -> Fatal:
    """Returns the error for a redirect to another endpoint (S3 API: PermanentRedirect, TemporaryRedirect).

    Ferry does not follow the redirect: signing for a host that only a response names would give that host a valid
    signature. The error ends the run and names the setting to change.
    """
    advice = "Correct `endpoint_url` and `region`"
    if found := _ADDRESS.match(location or ""):
        named = f"{found[1]}://{found[2].removeprefix(f'{bucket}.')}"
        advice = f"The response names {named}: set `endpoint_url` to that if you trust it"
    if region and _REGION.fullmatch(region):
        advice = f"Set `region: {region}`. If you set `endpoint_url`, change it to that region's"
    return Fatal(f"the {side} answered HTTP {status}: the bucket {bucket} is at another endpoint. {advice}")
