"""reports/run-N/end.json: how a run ended, for `ferry status`. A run that was killed writes none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ferry.state.files import State
from ferry.state.ledger import last_run_no, run_of

NAME = "end.json"


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The end of a run. ``message`` begins with the verdict: Completed, Failed or Cancelled."""

    run_no: int
    ended_at: str  # ISO 8601, UTC
    message: str


def write_end(state: State, run_no: int, message: str) -> None:
    """Records that a run has ended now."""
    end = RunEnd(run_no, datetime.now(UTC).isoformat(timespec="seconds"), message)
    state.write(f"reports/run-{run_no:06d}/{NAME}", json.dumps(asdict(end), indent=1).encode())


def read_end(state: State) -> RunEnd | None:
    """Returns the end of the last run that recorded one, None if there is none that can be read."""
    found = max((name for name in state.list("reports") if name.endswith(f"/{NAME}")), key=run_of, default=None)
    if found is None:
        return None
    try:
        return RunEnd(**json.loads(state.read(found)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def lost_run(state: State) -> int | None:
    """Returns the number of the last run if it left a plan or outcomes and no end, None otherwise.

    The summary counts as an end: earlier versions wrote no other.
    """
    ended = [name for name in state.list("reports") if name.endswith((f"/{NAME}", "/summary.json"))]
    last = last_run_no(state)
    return last if last > max(map(run_of, ended), default=0) else None
