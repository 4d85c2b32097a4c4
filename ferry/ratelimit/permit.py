"""Permits for requests to one host, and the results of those requests for its limit."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, Self

from ferry.core import ErrorClass, ObjectError

_AUTHORITY_END = re.compile(r"[/?#]")
_PLAIN_HOST = re.compile(r"[a-z]+://([a-z0-9.:-]+)/")


class _Limit(Protocol):
    """The methods of a host's limit that a permit uses (host.py)."""

    name: str

    def take(self) -> bool: ...
    async def wait(self) -> None: ...
    def give_back(self) -> None: ...
    def ok(self, latency_s: float) -> None: ...
    def answered(self, latency_s: float) -> None: ...
    def overloaded(self, retry_after_s: float | None, why: str, sure: bool) -> None: ...
    def charge(self, size: int) -> float: ...


class Permit:
    """A permit for one transfer from a host. Its holder reports the result once, then releases it."""

    __slots__ = ("_limit", "_on_progress", "_released")

    def __init__(self, limit: _Limit, on_progress: Callable[[], None] = lambda: None) -> None:
        """``on_progress`` is called for each piece of a body that arrives."""
        self._limit = limit
        self._on_progress = on_progress
        self._released = False

    def succeeded(self, latency_s: float) -> None:
        """Report that the body arrived, ``latency_s`` after the request began."""
        self._limit.ok(latency_s)

    def failed(self, error: ObjectError, latency_s: float) -> None:
        """Report a request that failed, with or without a response. A proxy's outage shows nothing about the host."""
        if not error.outage:
            record_failure(self._limit, error, latency_s)

    def charge(self, size: int) -> float:
        """Count ``size`` bytes that were read; return the seconds to wait before the next read."""
        self._on_progress()
        return self._limit.charge(size)

    @property
    def host(self) -> str:
        """The name of the host."""
        return self._limit.name

    def release(self) -> None:
        """Release the permit. Safe to call twice."""
        if not self._released:
            self._released = True
            self._limit.give_back()


def record_failure(limit: _Limit, error: ObjectError, latency_s: float) -> None:
    """Report a failed request to a limit: as overload, or as an ordinary response."""
    if how_sure := overload(error):
        limit.overloaded(error.retry_after_s, error.message, how_sure == "sure")
    else:
        limit.answered(latency_s)


def overload(error: ObjectError) -> Literal["sure", "maybe"] | None:
    """Return whether an error shows that a host is overloaded.

    | error | overload |
    |---|---|
    | 429, 503 (also SlowDown of a store) | sure |
    | a 4xx but 408 and 429: a refusal, such as a store's 400 InvalidRequest | None |
    | timeout, connection error, store error | maybe: one broken object may also cause these |
    | any other | None |
    """
    if error.error_class is ErrorClass.RATE_LIMITED or error.status_code == 503:
        return "sure"
    if error.status_code is not None and 400 <= error.status_code < 500 and error.status_code != 408:
        return None
    maybe = (ErrorClass.TIMEOUT, ErrorClass.CONNECTION, ErrorClass.STORE_ERROR)
    return "maybe" if error.error_class in maybe else None


def host_of(source: str) -> str:
    """Return the host, with its port, whose limit and circuit breaker apply to a source; a bucket or Azure account."""
    plain = _PLAIN_HOST.match(source)
    if plain is not None:
        return plain[1]
    return _AUTHORITY_END.split(source.partition("://")[2], maxsplit=1)[0].rpartition("@")[2].lower()


class PausedTooLong(Exception):
    """The host asked for a pause longer than the limiter waits. The text names the host and the pause."""


class Slot:
    """A context manager for one permit of a host. Its holder reports the result at most once."""

    __slots__ = ("_host",)

    def __init__(self, host: _Limit) -> None:
        self._host = host

    async def __aenter__(self) -> Self:
        host = self._host
        if not host.take():
            await host.wait()  # raises PausedTooLong
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.give_back()

    def ok(self, latency_s: float) -> None:
        """Report an object, ``latency_s`` after its request began."""
        self._host.ok(latency_s)

    def answered(self, latency_s: float) -> None:
        """Report a response without an object, such as 404."""
        self._host.answered(latency_s)

    def overloaded(self, retry_after_s: float | None = None, why: str = "overload", *, sure: bool = True) -> None:
        """Report that the host is overloaded. ``retry_after_s`` pauses the whole host; ``why`` is for status output.

        With ``sure`` False, the sign is a reset or a timeout, which one broken object may also cause. It counts only if
        more than a tenth of the host's recent requests end this way.
        """
        self._host.overloaded(retry_after_s, why, sure)
