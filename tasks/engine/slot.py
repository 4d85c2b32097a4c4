"""How most callers take a place at a host."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tasks.engine.host_limit import HostLimit


class PausedTooLong(Exception):
    """The host asked for a pause that nobody here waits for; the text says who and how long."""


class Slot:
    """One place at a host; a context manager. Tell it once how the request went, or nothing."""

    __slots__ = ("_host",)

    def __init__(self, host: HostLimit) -> None:
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
