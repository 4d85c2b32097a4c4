"""All private and undocumented names of Prefect that Ferry uses, each with its reason.

Tested with Prefect 3.8.8 and 3.9.1. tests/flows/test_prefect_patches.py has a test for each name, which fails if a
later Prefect lacks the name or behaves differently.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from prefect import flow_engine
from prefect.context import FlowRunContext, TagsContext
from prefect.filesystems import WritableFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]  # re-exported since 3.4
from prefect.serializers import JSONSerializer

from ferry.core import UserError

# Log lines of Prefect's engine and client, recognised by their text, since records have no attribute for it.
COMPLETED, CACHED, RETRIED = "Finished in state Completed", "Finished in state Cached", " - Retry "
UNREACHABLE, NOT_SENT = "Unable to connect to", "'EventsWorker' failed to process item"
ENGINE, FLOW_RUNS, TASK_RUNS = "prefect.engine", "prefect.flow_runs", "prefect.task_runs"
CLIENTS = ("prefect.events.clients", "prefect._internal.concurrency")
LAST_EVENTS = "EventsWorker"  # the logger that warns while the process ends and sends its last events

# Folders into which Prefect fetches code for a run: its process worker uses
# tempfile.TemporaryDirectory(suffix="prefect"), `flow.serve()` uses runner_storage/<UUID>. Prefect deletes them when
# the run ends, or the process that serves it. Neither a pull step nor a variable tells that to the run.
WORKER_FOLDER = re.compile(r"tmp[a-z0-9_]{8}prefect")
RUNNER_FOLDER = re.compile(r"runner_storage/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")

_SLOT = "maintain_concurrency_lease"


def hold_slots_with(hold: Callable[..., AbstractContextManager[None]]) -> None:
    """Make flows of this process hold their deployment's slot with ``hold(lease_id, lease_duration, ...)``.

    Prefect's own function raises in the flow's thread when it cannot renew a slot, and no setting changes that
    (flows/running/concurrency_slot.py). Raises UserError if this Prefect has no such function.
    """
    _must_have(flow_engine, _SLOT)
    vars(flow_engine)[_SLOT] = hold


def _must_have(module: ModuleType, name: str) -> None:
    """Raises UserError if the module lacks a name: setting it would silently have no effect."""
    if name not in vars(module):
        raise UserError(
            f"Prefect {importlib.metadata.version('prefect')} has no `{module.__name__}.{name}`, which Ferry needs. "
            "Install the version of Prefect in requirements.txt"
        )


def without_tags() -> TagsContext:
    """Returns a context in which tasks do not inherit their flow's tags.

    Each task with tags asks the server for permission before it starts. The server answers after it has recorded the
    earlier events, which takes two seconds at the end of a run. `prefect.tags` can only add tags.
    """
    return TagsContext(current_tags=set())


class OwnStorage(WritableFileSystem):
    """A result storage for Prefect that is not saved as a block. Abstract: tasks.result_store has the two methods."""

    @abstractmethod
    def kept(self, key: str) -> Any:
        """Returns the result under ``key`` as a JSON value. Prefect treats any exception as a cache miss."""

    @abstractmethod
    def keep(self, key: str, content: bytes) -> None:
        """Store Prefect's record of a result."""

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """Returns Prefect's record of a result. Prefect passes ``_sync``: a block's methods are async by default."""
        metadata = ResultRecordMetadata(storage_key=path, serializer=JSONSerializer())
        return ResultRecord(metadata=metadata, result=self.kept(path)).serialize()

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        """Store Prefect's record of a result; ``_sync`` as in :meth:`read_path`."""
        self.keep(path, content)

    def _resolve_path(self, _: str) -> None:
        """Returns nothing: a key has no path besides its own name."""


@contextlib.contextmanager
def results_in(storage: OwnStorage) -> Iterator[None]:
    """Store the results of a flow's tasks in ``storage``. `@flow(result_storage=...)` requires a saved block."""
    context: Any = FlowRunContext.get()
    before = context.result_store
    context.result_store = before.model_copy(update={"result_storage": storage, "serializer": JSONSerializer()})
    try:
        yield
    finally:
        context.result_store = before
