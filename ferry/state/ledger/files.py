"""The ledger's files: their names, new outcomes, and files that are damaged or lost.

| file | content |
|---|---|
| `outcomes/<run>-<chunk>-<part>-<digest>.parquet` | outcomes of a run that has not been folded |
| `ledger/<run>-<time>-<digest>.parquet` | a whole fold: the latest outcome of each row |
| `ledger/<run>-<time>-over-<digest of a whole fold>-<digest>.parquet` | the rows that changed since that fold |

Names in `ledger/` sort by run, then by time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ferry.core import Damaged, Outcome
from ferry.state.checksums import checked_name, decode_checked_json, digest_in, is_intact
from ferry.state.files import State
from ferry.state.ledger.connection import DAMAGE_ADVICE
from ferry.state.parquet import encode_outcomes
from ferry.state.plan_file import read_plan

DAMAGED = "damaged"  # folder to which `--replan` moves damaged files
_OVER = re.compile(r"-over-([0-9a-f]{16})-[0-9a-f]{16}\.parquet$")


def write_outcomes(state: State, data: bytes, run_no: int, chunk: str, part: int) -> str:
    """Writes `outcomes/<run>-<chunk>-<part>-<digest>.parquet` atomically, and returns its name.

    ``chunk`` is a chunk's digest, or a word such as `plan` or `verify` for outcomes of another step.
    """
    name = checked_name(f"outcomes/{run_no:06d}-{chunk[:32]}-{part:05d}", data)
    state.write(name, data)
    return name


def append_outcomes(state: State, outcomes: Sequence[Outcome], run_no: int, chunk: str, part: int) -> str:
    """Writes outcomes as :func:`write_outcomes` writes their bytes."""
    return write_outcomes(state, encode_outcomes(outcomes), run_no, chunk, part)


def run_of(name: str) -> int:
    """Returns the run number in a state file's name, or 0 for a name without one."""
    match = re.match(r"[^/]+/(?:run-)?(\d{6})", name)
    return int(match.group(1)) if match else 0


def last_run_no(state: State) -> int:
    """Returns the highest run number of the plan and of the state's files; 0 before the first run."""
    try:
        plan = read_plan(state)
    except Damaged:  # the next plan reports it
        plan = None
    names = (name for folder in ("outcomes", "ledger", "reports", DAMAGED) for name in state.list(folder))
    return max((plan.last_run if plan else 0, *map(run_of, names)))


def ledger_files(state: State) -> list[str]:
    """Returns the names of the ledger's files, which contain every outcome at any time.

    A fold writes its file before it deletes those that it replaces. `outcomes/` is listed first: what a concurrent fold
    removes from there is in `ledger/` when that is listed.
    """
    outcomes, folds = state.list("outcomes"), state.list("ledger")
    return [name for name in (*folds, *outcomes) if name.endswith(".parquet")]


def is_over(name: str) -> bool:
    """Returns whether a file of `ledger/` has only the rows that changed since a whole fold."""
    return _OVER.search(name) is not None


def is_base_of(base: str, name: str) -> bool:
    """Returns whether ``name`` has the changes since the whole fold ``base``."""
    return _OVER.findall(name) == [digest_in(base)] and not is_over(base)


def is_folded(names: Sequence[str]) -> bool:
    """Returns whether the ledger is what a fold leaves: one file of `ledger/`, or a whole fold and its changes."""
    if not all(name.startswith("ledger/") for name in names):
        return False
    return len(names) == 1 or (len(names) == 2 and is_base_of(names[0], names[1]))


def refuse_lost_ledger(state: State) -> None:
    """Raises Damaged when a file of `ledger/` is missing that the last finished run wrote, or the whole fold that a
    file of changes belongs to.

    It is not missing if a later whole fold has its outcomes; a later file of changes has those of an earlier one.
    `--replan` records it as lost, and then it is not missing any more.
    """
    if lost := _lost(state):
        raise Damaged(
            f"state file {lost[0]} is missing, with the outcomes of all runs up to {run_of(lost[0])}. {DAMAGE_ADVICE}"
        )


def put_ledger_aside(state: State) -> list[str]:
    """Moves the ledger's damaged files to `damaged/` for `--replan`, and returns their names.

    A missing ledger file is recorded there as an empty file.
    """
    damaged = [name for name in ledger_files(state) if not is_intact(state, name)]
    for name in damaged:
        state.write(f"{DAMAGED}/{Path(name).name}", state.read(name))
    state.delete(damaged)
    lost = _lost(state)
    for name in lost:
        state.write(f"{DAMAGED}/{Path(name).name}", b"")
    return [*damaged, *lost]


def _lost(state: State) -> list[str]:
    present = [name for name in state.list("ledger") if name.endswith(".parquet")]
    whole = [name for name in present if not is_over(name)]
    lost = [
        name
        for name in _reported(state)
        if name not in present and not any(other > name for other in (present if is_over(name) else whole))
    ]
    for name in filter(is_over, present):  # a run that was killed before its report named no file
        if not any(is_base_of(other, name) or other > name for other in whole):
            lost.append(f"ledger/{run_of(name):06d}-{_OVER.findall(name)[0]}.parquet")
    recorded = {_ending(name) for name in state.list(DAMAGED)}
    by_ending = {_ending(name): name for name in reversed(lost)}
    return [name for ending, name in by_ending.items() if ending not in recorded]


def _ending(name: str) -> str:
    """Returns what identifies a file, also where its run and time are not known: its digest, if it has one.

    A file of an earlier Ferry may have none.
    """
    return digest_in(name) or Path(name).name


def _reported(state: State) -> list[str]:
    """Returns the names of the ledger's files in the last finished run's report."""
    summaries = [name for name in state.list("reports") if name.endswith("/summary.json")]
    if not summaries:
        return []
    try:
        names = decode_checked_json(state.read(max(summaries, key=run_of)))["ledger"]
    except (ValueError, KeyError, TypeError):  # a damaged summary, or one of an earlier Ferry, names no file
        return []
    return [names] if isinstance(names, str) else list(names)  # earlier versions wrote one name
