"""Transfers the rows of one chunk: queue, fetch, check, store, outcome."""

from ferry.transfer.chunk import ChunkResult, run_chunk
from ferry.transfer.dispatcher import AHEAD_ROWS, READY_ROWS
from ferry.transfer.runtime import Runtime
from ferry.transfer.stall import (
    LOOK_S,
    SILENT_END_S,
    SILENT_TELL_S,
    Action,
    Moment,
    Silence,
    Wait,
    Watchdog,
    duration,
    in_words,
    is_excused,
)

__all__ = [
    "AHEAD_ROWS",
    "LOOK_S",
    "READY_ROWS",
    "SILENT_END_S",
    "SILENT_TELL_S",
    "Action",
    "ChunkResult",
    "Moment",
    "Runtime",
    "Silence",
    "Wait",
    "Watchdog",
    "duration",
    "in_words",
    "is_excused",
    "run_chunk",
]
