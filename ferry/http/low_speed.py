"""A body that only drips: a byte now and then keeps every silence short, and holds a place for hours.

What counts is the time in which somebody waits for bytes. A body that comes no faster because it is read no faster
(`limits.bytes_per_s`, a disk that is busy) is nobody's fault at the other end.
"""

from __future__ import annotations

WINDOW_S = 60.0
MIN_BYTES_PER_S = 1024
MESSAGE = f"the body came slower than {MIN_BYTES_PER_S:,} bytes a second for {WINDOW_S:.0f} s and longer"


class LowSpeedGuard:
    """Judges one body. Times are of any one clock; the caller says when it waits and what came.

    A window ends when it has been waited for ``window_s`` in all: with fewer than 1,024 bytes a second in it the body
    drips, else the next window begins. So the last minute of a body, and one that is shorter, is never judged.
    """

    __slots__ = ("_bytes", "_waited_s", "_waits_since", "_window_s")

    def __init__(self, window_s: float) -> None:
        self._window_s = max(window_s, WINDOW_S)  # a longer silence that is allowed is no drip
        self.begin()

    def begin(self) -> None:
        """Another body."""
        self._bytes = 0
        self._waited_s = 0.0
        self._waits_since: float | None = None

    def wait(self, now: float) -> None:
        """Somebody waits for bytes from now on."""
        if self._waits_since is None:
            self._waits_since = now

    def received(self, now: float, size: int) -> None:
        """So many bytes of the body came, and whoever waited has them."""
        self._bytes += size
        if self._waits_since is not None:
            self._waited_s += now - self._waits_since
            self._waits_since = None

    def is_too_slow(self, now: float) -> bool:
        """Asked now and then while the body is under way."""
        waits_s = 0.0 if self._waits_since is None else now - self._waits_since
        if self._waited_s + waits_s < self._window_s:
            return False
        if self._bytes < self._window_s * MIN_BYTES_PER_S:
            return True
        self._bytes, self._waited_s = 0, 0.0
        if self._waits_since is not None:
            self._waits_since = now
        return False
