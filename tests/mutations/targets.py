"""Which modules decide, and the tests that should notice a change in each, the quick ones first."""

from __future__ import annotations

TARGETS: dict[str, list[str]] = {
    "ferry/planning/planner.py": [
        "tests/ferry/planning/test_planner_state.py", "tests/ferry/planning/test_planner.py",
        "tests/ferry/planning/test_many_runs.py",
    ],
    "ferry/planning/rules.py": ["tests/ferry/planning/test_rules.py", "tests/ferry/planning/test_planner.py"],
    "ferry/planning/removed.py": ["tests/ferry/reconcile/test_prune.py", "tests/ferry/reconcile/test_prune_needed.py"],
    "ferry/state/plan_file.py": ["tests/ferry/planning/test_rules.py", "tests/ferry/planning/test_planner_state.py"],
    "ferry/planning/chunk_files.py": ["tests/ferry/planning/test_chunk_files.py"],
    "ferry/planning/row_facts.py": ["tests/ferry/planning/test_row_facts.py"],
    "ferry/planning/collisions.py": ["tests/ferry/planning/test_collisions.py"],
    "ferry/state/ledger.py": ["tests/ferry/state/test_ledger.py", "tests/ferry/planning/test_planner.py"],
    "ferry/state/lease.py": ["tests/ferry/state/test_lease.py"],
    "ferry/reconcile/prune.py": [
        "tests/ferry/reconcile/test_prune_deletes.py", "tests/ferry/reconcile/test_prune.py",
        "tests/ferry/reconcile/test_prune_again.py", "tests/ferry/reconcile/test_prune_needed.py",
    ],
    "ferry/state/missing.py": ["tests/ferry/reconcile/test_prune_needed.py", "tests/ferry/reconcile/test_prune.py"],
    "ferry/reconcile/source_check.py": ["tests/ferry/reconcile/test_prune_needed.py"],
    "ferry/core/attributes.py": ["tests/ferry/core/test_attributes.py"],
    "ferry/storage/attribute_refusals.py": ["tests/ferry/storage/test_attributes.py"],
    "ferry/transfer/attributes.py": [
        "tests/ferry/transfer/test_attributes.py", "tests/ferry/storage/test_attributes.py",
    ],
    "ferry/storage/object_info.py": ["tests/ferry/storage/test_object_info.py"],
    "ferry/storage/confirmation.py": ["tests/ferry/storage/test_confirmation.py"],
    "ferry/transfer/conflict.py": ["tests/ferry/transfer/test_unconfirmed.py", "tests/ferry/transfer/test_object.py"],
    "ferry/core/revalidation.py": ["tests/ferry/core/test_revalidation.py", "tests/ferry/transfer/test_delta.py"],
    "ferry/storage/uploads.py": ["tests/ferry/storage/test_uploads.py"],
    "ferry/storage/control.py": [
        "tests/ferry/storage/test_control.py", "tests/ferry/storage/test_listings.py",
        "tests/ferry/storage/test_hiccups.py",
        "tests/ferry/state/test_bucket_state.py",
    ],
    "ferry/core/retry.py": ["tests/ferry/core/test_retry.py", "tests/ferry/storage/test_uploads.py"],
    "ferry/transfer/retry.py": ["tests/ferry/transfer/test_retry.py"],
    "ferry/transfer/destination_outage.py": ["tests/ferry/transfer/test_destination_outage.py"],
    "ferry/transfer/stall.py": ["tests/ferry/transfer/test_stall.py"],
    "ferry/core/memory_budget.py": ["tests/ferry/core/test_memory_budget.py"],
    "ferry/core/quota.py": ["tests/ferry/core/test_memory_budget.py"],
    "ferry/http/address_filter.py": ["tests/ferry/http/test_address_filter.py", "tests/ferry/http/test_own_address.py"],
    "ferry/http/address_ranges.py": ["tests/ferry/http/test_address_filter.py", "tests/ferry/http/test_own_address.py"],
    "ferry/job/buckets.py": ["tests/ferry/job/test_buckets.py"],
    "ferry/job/limits.py": ["tests/ferry/job/test_limits.py"],
    "ferry/ratelimit/effective.py": ["tests/ferry/ratelimit/test_effective.py"],
    "ferry/ratelimit/overrides.py": ["tests/ferry/ratelimit/test_overrides.py"],
    "ferry/http/auth.py": ["tests/ferry/http/test_auth.py"],
    "ferry/manifest/api_pages.py": ["tests/ferry/manifest/test_api_pages.py"],
    "tasks/own_files.py": ["tests/flows/test_hostile_names.py"],
}  # fmt: skip
