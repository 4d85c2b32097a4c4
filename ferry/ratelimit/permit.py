"""A row's place at its source: whose limit it counts for, and what the limit hears of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, Self

from ferry.core import ErrorClass, ObjectError

_AUTHORITY_END = re.compile(r"[/?#]")
_PLAIN_HOST = re.compile(r"[a-z]+://([a-z0-9.:-]+)/")


class _Limit(Protocol):
    """What a permit needs of a host's limit (host.py)."""

    name: str

    def take(self) -> bool: ...
    async def wait(self) -> None: ...
    def give_back(self) -> None: ...
    def ok(self, latency_s: float) -> None: ...
    def answered(self, latency_s: float) -> None: ...
    def overloaded(self, retry_after_s: float | None, why: str, sure: bool) -> None: ...
    def charge(self, size: int) -> float: ...


class Permit:
    """A place at a row's host, taken by whoever begins the row. It hears once how that went, and is given back."""

    __slots__ = ("_limit", "_on_progress", "_released")

    def __init__(self, limit: _Limit, on_progress: Callable[[], None] = lambda: None) -> None:
        """``on_progress`` hears of each piece of a body that comes."""
        self._limit = limit
        self._on_progress = on_progress
        self._released = False

    def succeeded(self, latency_s: float) -> None:
        """The body is here."""
        self._limit.ok(latency_s)

    def failed(self, error: ObjectError, latency_s: float) -> None:
        """The source answered otherwise, or not at all."""
        record_failure(self._limit, error, latency_s)

    def charge(self, size: int) -> float:
        """Books bytes that came; returns the seconds to wait before more are read."""
        self._on_progress()
        return self._limit.charge(size)

    @property
    def host(self) -> str:
        return self._limit.name

    def release(self) -> None:
        """Safe to call twice."""
        if not self._released:
            self._released = True
            self._limit.give_back()


def record_failure(limit: _Limit, error: ObjectError, latency_s: float) -> None:
    """What a limit hears of a request that failed: overload, or an answer like any other."""
    if how_sure := overload(error):
        limit.overloaded(error.retry_after_s, error.message, how_sure == "sure")
    else:
        limit.answered(latency_s)


def overload(error: ObjectError) -> Literal["sure", "maybe"] | None:
    """Does an error say that a host is asked for too much?

    | error | overload |
    |---|---|
    | 429, 503 (also SlowDown of a store) | sure |
    | timeouts, resets, a store in trouble | maybe: one broken object causes them too |
    | anything else | no |
    """
    if error.error_class is ErrorClass.RATE_LIMITED or error.status_code == 503:
        return "sure"
    maybe = (ErrorClass.TIMEOUT, ErrorClass.CONNECTION, ErrorClass.STORE_ERROR)
    return "maybe" if error.error_class in maybe else None


def host_of(source: str) -> str:
    """The host (with its port) whose limit and circuit a source counts for; a root's bucket likewise."""
    plain = _PLAIN_HOST.match(source)
    if plain is not None:
        return plain[1]
    return _AUTHORITY_END.split(source.partition("://")[2], maxsplit=1)[0].rpartition("@")[2].lower()


class PausedTooLong(Exception):
    """The host asked for a pause that nobody here waits for; the text says who and how long."""


class Slot:
    """One place at a host; a context manager. Tell it once how the request went, or nothing."""

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
        self._host.ok(latency_s)

    def answered(self, latency_s: float) -> None:
        self._host.answered(latency_s)

    def overloaded(self, retry_after_s: float | None = None, why: str = "overload", *, sure: bool = True) -> None:
        """The host is asked for too much. ``retry_after_s`` pauses it as a whole; ``why`` is for status output.

        Not ``sure``: a reset or a timeout, which one broken object also causes. It counts once more than a
        tenth of the host's recent requests end so.
        """
        self._host.overloaded(retry_after_s, why, sure)
