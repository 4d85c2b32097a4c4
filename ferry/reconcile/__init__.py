"""The steps after the last chunk: fold and count the ledger, verify the destination, prune removed copies."""

from ferry.reconcile.finish import finish_run
from ferry.reconcile.listing import beside_listing, load_listing
from ferry.reconcile.prune import PruneResult, prune_removed
from ferry.reconcile.sample import (
    EVERYTHING,
    Sample,
    check_choice,
    count_expected,
    draw_sample,
    expected_rows,
    sample_rows,
)
from ferry.reconcile.verify import Evidence, Reading, Verified, compare_with_listing, note_verified, read_back

__all__ = [
    "EVERYTHING",
    "Evidence",
    "PruneResult",
    "Reading",
    "Sample",
    "Verified",
    "beside_listing",
    "check_choice",
    "compare_with_listing",
    "count_expected",
    "draw_sample",
    "expected_rows",
    "finish_run",
    "load_listing",
    "note_verified",
    "prune_removed",
    "read_back",
    "sample_rows",
]
