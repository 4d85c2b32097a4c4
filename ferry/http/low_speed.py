"""A guard that ends response bodies which arrive too slowly.

A server that sends one byte at a time never hits the read timeout, but would hold a connection for hours. Only the time
in which Ferry waits for bytes counts. A body that Ferry itself reads slowly (`limits.bytes_per_s`, a busy disk) is not
the server's fault.
"""

from __future__ import annotations

WINDOW_S = 60.0
MIN_BYTES_PER_S = 1024
MESSAGE = f"the body was slower than {MIN_BYTES_PER_S:,} bytes per second for {WINDOW_S:.0f} s or longer"


class LowSpeedGuard:
    """Measures the speed of one body. Times are in seconds of any one clock.

    A window ends after ``window_s`` of waiting. If fewer than 1,024 bytes per second arrived in it, the body is too
    slow; otherwise the next window begins. An unfinished window does not count, so a body of less than one window
    passes.
    """

    __slots__ = ("_bytes", "_waited_s", "_waits_since", "_window_s")

    def __init__(self, window_s: float) -> None:
        self._window_s = max(window_s, WINDOW_S)  # a longer read timeout allows longer silence
        self.begin()

    def begin(self) -> None:
        """Start to measure another body."""
        self._bytes = 0
        self._waited_s = 0.0
        self._waits_since: float | None = None

    def wait(self, now: float) -> None:
        """Note that Ferry waits for bytes from ``now`` on."""
        if self._waits_since is None:
            self._waits_since = now

    def received(self, now: float, size: int) -> None:
        """Note that ``size`` bytes of the body arrived, which ends the wait."""
        self._bytes += size
        if self._waits_since is not None:
            self._waited_s += now - self._waits_since
            self._waits_since = None

    def is_too_slow(self, now: float) -> bool:
        """Return True if a window has ended and was too slow. The caller asks regularly while the body arrives."""
        waits_s = 0.0 if self._waits_since is None else now - self._waits_since
        if self._waited_s + waits_s < self._window_s:
            return False
        if self._bytes < self._window_s * MIN_BYTES_PER_S:
            return True
        self._bytes, self._waited_s = 0, 0.0
        if self._waits_since is not None:
            self._waits_since = now
        return False
