"""What urllib3 raises while it talks to a store, and what a store's redirect means, as Ferry's errors."""

from __future__ import annotations

import re

import urllib3.exceptions as raised

from tasks.engine.errors import Fatal, ObjectError, from_store_http
from tasks.engine.objects import ErrorClass

HTTP_ERRORS = (raised.HTTPError, OSError)
_HOST = re.compile(r"https?://([A-Za-z0-9.-]+(?::[0-9]+)?)(?:/|\Z)")
_REGION = re.compile(r"[a-z0-9-]{1,40}")


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


def redirected(status: int, location: str | None, region: str | None, bucket: str, side: str) -> Fatal:
    """The error of a store that answers that its bucket is elsewhere (S3 API: PermanentRedirect, TemporaryRedirect).

    Ferry does not follow: a request signed for a host that only the answer names would hand it a valid signature. It
    says what to set instead, once for the run.
    """
    advice = "Correct `endpoint_url` and `region`"
    found = _HOST.match(location or "")
    if found is not None:
        host = found[1].removeprefix(f"{bucket}.")
        advice = f"Set `endpoint_url` to the endpoint it names, if it is yours: {(location or '').partition(':')[0]}://{host}"
    if region and _REGION.fullmatch(region):
        advice = f"Set `region: {region}`, and the `endpoint_url` of that region if you set one"
    return Fatal(f"the {side} answered HTTP {status}: the bucket {bucket} is at another endpoint. {advice}")
