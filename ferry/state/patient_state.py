"""A state in a bucket that waits for its store while the caller may wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from ferry.core import Unreachable, in_bucket
from ferry.state.files import State

T = TypeVar("T")
PAUSE_S = 1.0  # between two tries; each has its own five attempts
CHILD_PATIENCE_S = 90.0  # of a process that does not know the lease


class PatientState:
    """Repeats each operation on ``state`` after :class:`Unreachable`, while ``may_wait`` returns True.

    ``may_wait`` is given the seconds since the operation began. All other errors are raised at once: a full disk,
    refused credentials, a missing bucket.
    """

    def __init__(self, state: State, may_wait: Callable[[float], bool]) -> None:
        self.uri, self.spool_dir = state.uri, state.spool_dir
        self.state = state
        self._may_wait = may_wait

    def read(self, name: str) -> bytes:
        return self._patiently(lambda: self.state.read(name))

    def write(self, name: str, data: bytes) -> None:
        self._patiently(lambda: self.state.write(name, data))

    def write_file(self, name: str, path: Path) -> None:
        self._patiently(lambda: self.state.write_file(name, path))

    def create(self, name: str, data: bytes) -> bool:
        return self._patiently(lambda: self.state.create(name, data))

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        return self._patiently(lambda: self.state.swap(name, old, new))

    def drop(self, name: str, old: bytes, instead: bytes) -> bool:
        return self._patiently(lambda: self.state.drop(name, old, instead))

    def list(self, folder: str, start: str = "") -> list[str]:
        return self._patiently(lambda: self.state.list(folder, start))

    def delete(self, names: Iterable[str]) -> None:
        deleted = list(names)
        self._patiently(lambda: self.state.delete(deleted))

    def local(self, name: str, *, refresh: bool = False) -> Path:
        return self._patiently(lambda: self.state.local(name, refresh=refresh))

    def check_conditions(self) -> None:
        self.state.check_conditions()

    def delete_stale_copies(self) -> None:
        self._patiently(self.state.delete_stale_copies)

    def _patiently(self, work: Callable[[], T]) -> T:
        began = time.monotonic()
        while True:
            try:
                return work()
            except Unreachable:
                if not self._may_wait(time.monotonic() - began):
                    raise
            time.sleep(PAUSE_S)


def impatient(state: State) -> State:
    """Returns the state whose operations end with their first error."""
    return state.state if isinstance(state, PatientState) else state


def for_a_while(waited_s: float) -> bool:
    """Returns whether a process that does not know when the lease ends continues to wait."""
    return waited_s < CHILD_PATIENCE_S


def patient(state: State, may_wait: Callable[[float], bool]) -> State:
    """Returns a :class:`PatientState` for a state in a bucket, and any other state as it is."""
    return PatientState(state, may_wait) if in_bucket(state.uri) else state
