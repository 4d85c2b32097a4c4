"""Transfer of one chunk's rows: queue, fetch, check, store and record each one."""

from ferry.transfer.body_check import lesser_check_of
from ferry.transfer.chunk import ChunkResult, run_chunk
from ferry.transfer.dispatcher import AHEAD_ROWS, READY_ROWS
from ferry.transfer.retry import Next, next_step
from ferry.transfer.runtime import Runtime
from ferry.transfer.stall import (
    CHECK_S,
    SILENT_END_S,
    SILENT_WARN_S,
    Action,
    Moment,
    Silence,
    Wait,
    Watchdog,
    describe_silence,
    describe_stall,
    duration,
    is_excused,
)

__all__ = [
    "AHEAD_ROWS",
    "CHECK_S",
    "READY_ROWS",
    "SILENT_END_S",
    "SILENT_WARN_S",
    "Action",
    "ChunkResult",
    "Moment",
    "Next",
    "Runtime",
    "Silence",
    "Wait",
    "Watchdog",
    "describe_silence",
    "describe_stall",
    "duration",
    "is_excused",
    "lesser_check_of",
    "next_step",
    "run_chunk",
]
