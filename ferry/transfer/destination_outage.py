"""A destination that is away: its rows wait, and after two minutes the run ends. Pure but for the clock that is given.

That nobody answers is no failure of the rows that are tried meanwhile. One try goes through every few seconds, whatever
waits behind it. For good it is another matter: a run that waits for ever looks alive and is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ferry.core import ErrorClass, Fatal, ObjectError

ENDS_S = 120.0
LEAST_KEYS = 5  # one object that always breaks its connection is that object's trouble

_NO_ANSWER = frozenset(
    {ErrorClass.TIMEOUT, ErrorClass.DNS, ErrorClass.TLS, ErrorClass.CONNECTION, ErrorClass.STORE_ERROR}
)


def verdict(silent_s: float, keys: int) -> Literal["fine", "away", "over"]:
    """What is to be thought of a destination that has answered nothing for ``silent_s``, asked for so many keys.

    | keys | silent for | verdict |
    |---|---|---|
    | fewer than 5 | any | fine: these rows' own trouble, as far as one can tell |
    | 5 or more | less than 120 s | away: rows wait |
    | 5 or more | 120 s or more | over: the run ends |
    """
    if keys < LEAST_KEYS:
        return "fine"
    return "over" if silent_s >= ENDS_S else "away"


def is_silence(error: ObjectError) -> bool:
    """Did nobody answer?

    | the error | |
    |---|---|
    | refused, reset, timeout, no such host, TLS; no status | silence |
    | any HTTP status, a 503 as well | an answer |
    | about the object: its key, its digest, what stands there | an answer |
    """
    return error.status_code is None and error.error_class in _NO_ANSWER


Kind = Literal["read", "write"]  # of requests: a store may answer the one and be silent to the other


@dataclass(slots=True)
class _Silence:
    since: float = 0.0
    keys: set[str] = field(default_factory=set)


class Outage:
    """Hears how each request at the destination ended. In the loop's thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._silences: dict[Kind, _Silence] = {"read": _Silence(), "write": _Silence()}

    def answered(self, kind: Kind) -> None:
        """It answers requests of this kind."""
        self._silences[kind].keys.clear()

    def failed(self, key: str, error: ObjectError, kind: Kind) -> bool:
        """Is the destination away? Raises Fatal once it has been silent for too long."""
        if not is_silence(error):
            self.answered(kind)
            return False
        now = self._clock()
        silence = self._silences[kind]
        if not silence.keys:
            silence.since = now
        if len(silence.keys) < LEAST_KEYS:
            silence.keys.add(key)
        silent_s = now - silence.since
        found = verdict(silent_s, len(silence.keys))
        if found == "over":
            raise Fatal(
                f"the destination has answered nothing for {silent_s:,.0f} s, asked to {kind} ({error.message}). What "
                "was not moved stays pending: see whether `destination` is right, up, and reachable from here, then "
                "run the job again"
            )
        return found == "away"
