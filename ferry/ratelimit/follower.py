"""The limits of a live run, which change by the job's timetable, by `ferry limits`, and with runs that share them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from ferry.core import FerryError, in_bucket
from ferry.job import Limits
from ferry.ratelimit.effective import changes, in_force, limits_of_settings
from ferry.ratelimit.overrides import read_overrides
from ferry.ratelimit.shares import limits_of
from ferry.state import State

READ_S, READ_S_IN_A_BUCKET = 2.0, 10.0  # between two reads of limits.json; each read of a bucket is a paid request


class LimitsFollower:
    """Tells which limits are in force, and what has changed. A thread reads limits.json until the block ends.

    The thread keeps a slow bucket from holding up the caller.
    """

    def __init__(
        self, state: State, given: Limits, now: Callable[[], float] = time.time, members: Callable[[], int] = lambda: 1
    ) -> None:
        """``given`` are the job's limits, which ``members()`` live runs divide.

        Raises UserError if limits.json cannot be used.
        """
        self._state, self._given, self._now, self._members = state, given, now, members
        self._shared_by = 1
        self._overrides = read_overrides(state)
        self._problem = self._told = ""
        self._found = in_force(now(), given, self._overrides)
        self._told_of = in_force(now(), given.model_copy(update={"timetable": []}), [])
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read_often, name="ferry-limits", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()

    @property
    def limits(self) -> Limits:
        """This run's part of the limits in force at the last :meth:`update`, without a timetable."""
        return limits_of(limits_of_settings(self._found), self._shared_by)

    def elsewhere(self) -> int:
        """Returns 0: a run begins with the processes of its own machine."""
        return 0

    def update(self) -> list[str]:
        """Evaluate the limits, and return a sentence for each change; from the first call, those from the job's own."""
        self._found = in_force(self._now(), self._given, self._overrides)
        said = [f"limits: {change}" for change in changes(self._told_of, self._found)]
        self._told_of = self._found
        before, self._shared_by = self._shared_by, self._members()
        if self._shared_by != before:
            part = f"each takes 1/{self._shared_by} of its job's" if self._shared_by > 1 else "this one takes all"
            runs = "1 live run" if self._shared_by == 1 else f"{self._shared_by} live runs"
            said.append(f"limits: {runs} with limits.shared: {self._given.shared}; {part}")
        if self._problem not in ("", self._told):
            said.append(f"{self._problem}. Until then the limits in force stay")
        self._told = self._problem
        return said

    def _read_often(self) -> None:
        every_s = READ_S_IN_A_BUCKET if in_bucket(self._state.uri) else READ_S
        while not self._closing.wait(every_s):
            try:
                self._overrides, self._problem = read_overrides(self._state), ""
            except (FerryError, OSError) as exc:
                self._problem = str(exc)
