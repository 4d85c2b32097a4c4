"""Limits that live runs of several jobs share (`limits.shared`): each takes an equal part (docs/decisions/0067).

The record of live runs is at the Prefect server: a tag that names what is shared, and a label that changes every few
seconds. The server is asked twice in that time, never for a request to a host.

Prefect is imported where it is used: `ferry run` loads this module before it leaves the working directory
(flows.server.working_directory).
"""

from __future__ import annotations

import contextlib
import contextvars
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from ferry.ratelimit import BEAT_S, JOIN_S, Members

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

BEAT = "ferry.shared.beat"
LEFT = 0  # the beat of a run that transfers nothing more
MOST = 200  # runs


class SharedLimits:
    """This run's part of the limits, as the number of live runs that divide them."""

    def __init__(
        self, name: str | None = None, flow_run: str = "", warn: Callable[[str], None] = lambda _: None
    ) -> None:
        """``name`` is the job's `limits.shared`; without one, or without a run at Prefect, ``members`` stays 1."""
        self.members = 1
        self._tag, self._own, self._warn = f"shared:{name}", flow_run, warn
        self._is_shared = name is not None and flow_run != ""
        self._others = Members()
        self._beat = random.randrange(1, 1_000_000)  # noqa: S311 - another process may continue the same run
        self._answered, self._leaving = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def join(self, sleep: Callable[[float], object]) -> None:
        """Take part from now on. Returns when the other live runs have left this one its part, at once without any."""
        if not self._is_shared or self._thread is not None:
            return
        from tasks import prefect_api

        context = contextvars.copy_context()  # has Prefect's settings
        self._thread = threading.Thread(target=context.run, args=(self._beat_often,), name="ferry-shared", daemon=True)
        self._thread.start()
        if not self._answered.wait(2 * prefect_api.TIMEOUT_S):
            self._warn("limits.shared: the Prefect server does not answer. Until then this run takes its limits whole")
        elif self.members > 1:
            sleep(JOIN_S)

    def leave(self) -> None:
        """Leave the limits to the other runs. They take this run's part when they next read, within BEAT_S."""
        self._leaving.set()
        if self._thread is not None:
            from tasks import prefect_api

            self._thread.join(prefect_api.TIMEOUT_S)

    def _beat_often(self) -> None:
        from tasks import prefect_api

        with prefect_api.polling_client() as client:
            while True:
                with contextlib.suppress(*prefect_api.API_ERRORS, ValueError):  # the part stays as it was
                    self._beat_once(client)
                    self._answered.set()
                if self._leaving.wait(BEAT_S):
                    break
            with contextlib.suppress(*prefect_api.API_ERRORS, ValueError):
                client.update_flow_run_labels(UUID(self._own), {BEAT: LEFT})

    def _beat_once(self, client: SyncPrefectClient) -> None:
        from prefect.client.schemas.filters import (
            FlowRunFilter,
            FlowRunFilterState,
            FlowRunFilterStateType,
            FlowRunFilterTags,
        )
        from prefect.client.schemas.objects import StateType

        own = UUID(self._own)
        self._beat += 1
        client.update_flow_run_labels(own, {BEAT: self._beat})
        moving = [StateType.RUNNING, StateType.CANCELLING]
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[self._tag]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=moving)),
            ),
            limit=MOST,
        )
        if own not in {run.id for run in found}:  # the first beat, or the tags were replaced
            client.update_flow_run(own, tags=sorted({*client.read_flow_run(own).tags, self._tag}))
        beats = {str(run.id): int(run.labels.get(BEAT, LEFT)) for run in found if run.id != own}
        live = {run: beat for run, beat in beats.items() if beat != LEFT}
        self.members = 1 + self._others.count(time.monotonic(), live)
