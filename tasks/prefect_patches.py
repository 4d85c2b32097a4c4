"""Private and undocumented names of Prefect that Ferry uses, all in one place, each with its reason.

Tried with Prefect 3.8.8 and 3.9.1. tests/flows/test_prefect_patches.py has a test for each: it fails where a later
Prefect has no such name, or behaves otherwise.
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

# What Prefect's engine and client log, told apart by its text: no attribute of the records says it.
SETTLED, CACHED, RETRIED = "Finished in state Completed", "Finished in state Cached", " - Retry "
UNREACHABLE, NOT_SENT = "Unable to connect to", "'EventsWorker' failed to process item"
ENGINE, FLOW_RUNS, TASK_RUNS = "prefect.engine", "prefect.flow_runs", "prefect.task_runs"
CLIENTS = ("prefect.events.clients", "prefect._internal.concurrency")

# Where Prefect puts the code that it fetches for a run: its process worker in a
# tempfile.TemporaryDirectory(suffix="prefect"), `flow.serve()` in runner_storage/<UUID>. Both are deleted when the run,
# or the process that serves it, ends. No pull step and no variable says so to the run.
WORKER_FOLDER = re.compile(r"tmp[a-z0-9_]{8}prefect")
RUNNER_FOLDER = re.compile(r"runner_storage/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")

_SLOT = "maintain_concurrency_lease"


def hold_slots_with(hold: Callable[..., AbstractContextManager[None]]) -> None:
    """Has flows of this process hold the slot of their deployment by ``hold(lease_id, lease_duration, ...)``.

    Prefect's own function throws into the flow's thread when it cannot renew a slot, and no setting changes that
    (flows/running/concurrency_slot.py). Raises UserError where this Prefect has no such function.
    """
    _must_have(flow_engine, _SLOT)
    vars(flow_engine)[_SLOT] = hold


def _must_have(module: ModuleType, name: str) -> None:
    """Raises UserError: to set a name that nothing reads would change nothing, without a word."""
    if name not in vars(module):
        raise UserError(
            f"Prefect {importlib.metadata.version('prefect')} has no `{module.__name__}.{name}`, which Ferry needs. "
            "Install a Prefect that this Ferry is tried with: requirements.txt names it"
        )


def without_tags() -> TagsContext:
    """Tasks inside do without their flow's tags: each task that has some asks the server for leave before it starts.

    The server answers when it has recorded the events before, two seconds later at the end of a run. `prefect.tags`
    adds tags and takes none away.
    """
    return TagsContext(current_tags=set())


class OwnStorage(WritableFileSystem):
    """A result storage of Prefect's that is never saved as a block. Abstract: result_store.py has the two methods."""

    @abstractmethod
    def kept(self, key: str) -> Any:
        """The result under ``key``, as JSON has it. Whatever this raises is a miss to Prefect."""

    @abstractmethod
    def keep(self, key: str, content: bytes) -> None:
        """Keeps Prefect's record of a result."""

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """Prefect passes `_sync` to a block's methods, which are async unless they are told."""
        metadata = ResultRecordMetadata(storage_key=path, serializer=JSONSerializer())
        return ResultRecord(metadata=metadata, result=self.kept(path)).serialize()

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        """As :meth:`read_path`."""
        self.keep(path, content)

    def _resolve_path(self, _: str) -> None:
        """Prefect asks where a key lies: nowhere but under its own name."""


@contextlib.contextmanager
def results_in(storage: OwnStorage) -> Iterator[None]:
    """Inside a flow: what its tasks keep lies in ``storage``. `@flow(result_storage=...)` wants a saved block."""
    context: Any = FlowRunContext.get()
    before = context.result_store
    context.result_store = before.model_copy(update={"result_storage": storage, "serializer": JSONSerializer()})
    try:
        yield
    finally:
        context.result_store = before
