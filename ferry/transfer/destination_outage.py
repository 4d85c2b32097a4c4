"""Detection of a destination outage: rows wait while the destination does not respond, for at most two minutes.

The rows that are tried in the meantime do not fail. One try is sent every few seconds. After two minutes the run ends,
since a run that waits for ever looks alive and is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ferry.core import ErrorClass, MachineFatal, ObjectError

ENDS_S = 120.0
MIN_KEYS = 5  # fewer keys may have objects that always break the connection

_NO_RESPONSE = frozenset(
    {ErrorClass.TIMEOUT, ErrorClass.DNS, ErrorClass.TLS, ErrorClass.CONNECTION, ErrorClass.STORE_ERROR}
)


def verdict(silent_s: float, keys: int) -> Literal["fine", "away", "over"]:
    """Returns the state of a destination that has not responded for ``silent_s`` to requests for ``keys`` keys.

    | keys | silent for | verdict |
    |---|---|---|
    | fewer than 5 | any | fine: the problem may be that of these objects |
    | 5 or more | less than 120 s | away: rows wait |
    | 5 or more | 120 s or more | over: the run ends |
    """
    if keys < MIN_KEYS:
        return "fine"
    return "over" if silent_s >= ENDS_S else "away"


def is_silence(error: ObjectError) -> bool:
    """Returns whether an error means that the destination did not respond.

    | the error | |
    |---|---|
    | refused, reset, timeout, no such host, TLS; no status | silence |
    | any HTTP status, also a 503 | a response |
    | about the object: its key, its digest, the existing object | a response |
    """
    return error.status_code is None and error.error_class in _NO_RESPONSE


Kind = Literal["read", "write"]  # of requests: a store may respond to one kind and not to the other


@dataclass(slots=True)
class _Silence:
    """The time since the first request without a response, and the keys of such requests."""

    since: float = 0.0
    keys: set[str] = field(default_factory=set)


class Outage:
    """The responses of the destination by kind of request, for the event loop's thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._silences: dict[Kind, _Silence] = {"read": _Silence(), "write": _Silence()}

    def answered(self, kind: Kind) -> None:
        """Records a response to a request of this kind."""
        self._silences[kind].keys.clear()

    def failed(self, key: str, error: ObjectError, kind: Kind) -> bool:
        """Records a failed request, and returns whether the destination is away.

        Raises MachineFatal once it has not responded for ENDS_S.
        """
        if not is_silence(error):
            self.answered(kind)
            return False
        now = self._clock()
        silence = self._silences[kind]
        if not silence.keys:
            silence.since = now
        if len(silence.keys) < MIN_KEYS:
            silence.keys.add(key)
        silent_s = now - silence.since
        found = verdict(silent_s, len(silence.keys))
        if found == "over":
            raise MachineFatal(
                f"the destination has not responded to any {kind} request for {silent_s:,.0f} s ({error.message}). The "
                "remaining rows stay pending. Check that `destination` is correct and reachable from this machine, "
                "then run the job again"
            )
        return found == "away"
