"""The steps after the last chunk: fold and count the ledger, verify the destination, prune removed copies."""

from ferry.reconcile.finish import finish_run
from ferry.reconcile.prune import PruneResult, prune_removed
from ferry.reconcile.run_rates import Rate, Slow, keep_rates, read_rates, slow
from ferry.reconcile.verify import (
    EVERYTHING,
    Evidence,
    Sample,
    Verified,
    compare_with_listing,
    draw_sample,
    expected_objects,
    note_verified,
    read_back,
    sample_rows,
    verify_parts,
)

__all__ = [
    "EVERYTHING",
    "Evidence",
    "PruneResult",
    "Rate",
    "Sample",
    "Slow",
    "Verified",
    "compare_with_listing",
    "draw_sample",
    "expected_objects",
    "finish_run",
    "keep_rates",
    "note_verified",
    "prune_removed",
    "read_back",
    "read_rates",
    "sample_rows",
    "slow",
    "verify_parts",
]
