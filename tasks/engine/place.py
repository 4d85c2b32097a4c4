"""A row's place at its source: whose limit it counts for, and what the limit hears of it."""

from __future__ import annotations

import re
from typing import Literal

from tasks.engine.errors import ObjectError
from tasks.engine.limiter import HostLimit
from tasks.engine.objects import ErrorClass

_AUTHORITY_END = re.compile(r"[/?#]")
_PLAIN_HOST = re.compile(r"[a-z]+://([a-z0-9.:-]+)/")


class Place:
    """A place at a row's host, taken by whoever begins the row. It is given back once, and hears once how it went."""

    __slots__ = ("_limit", "_told")

    def __init__(self, limit: HostLimit) -> None:
        self._limit: HostLimit | None = limit
        self._told = False

    def came(self, latency_s: float) -> None:
        """The body is here."""
        if self._limit is not None and not self._told:
            self._told = True
            self._limit.ok(latency_s)

    def failed(self, error: ObjectError, latency_s: float) -> None:
        """The source answered otherwise, or not at all."""
        if self._limit is None or self._told:
            return
        self._told = True
        if how_sure := overload(error):
            self._limit.overloaded(error.retry_after_s, error.message, how_sure == "sure")
        else:
            self._limit.answered(latency_s)

    def charge(self, size: int) -> float:
        """Books bytes that came; returns the seconds to wait before more are read."""
        return self._limit.charge(size) if self._limit is not None else 0.0

    def free(self) -> None:
        """Safe to call twice."""
        if self._limit is not None:
            limit, self._limit = self._limit, None
            limit.give_back()


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
