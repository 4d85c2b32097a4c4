"""What urllib3 raises while it talks to a store, as Ferry's errors."""

from __future__ import annotations

import urllib3.exceptions as raised

from tasks.engine.errors import Fatal, ObjectError, from_store_http
from tasks.engine.objects import ErrorClass

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
