"""The ledger: all outcomes of a job, and their fold to the latest one per row (docs/reference/state.md).

Runs append to `outcomes/`, and :func:`compact_ledger` folds into `ledger/`. A row may be in both, and several times in
each; merge.py says which of its outcomes counts.
"""

from ferry.state.ledger.connection import DAMAGE_ADVICE, connect, refuse_damage, release_freed, with_retries
from ferry.state.ledger.files import (
    DAMAGED,
    append_outcomes,
    last_run_no,
    ledger_files,
    put_ledger_aside,
    refuse_lost_ledger,
    run_of,
    write_outcomes,
)
from ferry.state.ledger.fold import compact_ledger
from ferry.state.ledger.history import HISTORY_FOLDER
from ferry.state.ledger.reader import OpenLedger, create_latest, keep_readable, open_ledger

__all__ = [
    "DAMAGED",
    "DAMAGE_ADVICE",
    "HISTORY_FOLDER",
    "OpenLedger",
    "append_outcomes",
    "compact_ledger",
    "connect",
    "create_latest",
    "keep_readable",
    "last_run_no",
    "ledger_files",
    "open_ledger",
    "put_ledger_aside",
    "refuse_damage",
    "refuse_lost_ledger",
    "release_freed",
    "run_of",
    "with_retries",
    "write_outcomes",
]
