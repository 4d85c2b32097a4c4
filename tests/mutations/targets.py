"""Which modules decide, and the tests that should notice a change in each, the quick ones first."""

from __future__ import annotations

TARGETS: dict[str, list[str]] = {
    "tasks/engine/planner.py": [
        "tests/engine/test_planner_state.py", "tests/engine/test_planner.py", "tests/engine/test_many_runs.py",
    ],
    "tasks/engine/plan.py": ["tests/engine/test_plan.py", "tests/engine/test_planner.py"],
    "tasks/engine/cut.py": ["tests/engine/test_cut.py"],
    "tasks/engine/facts.py": ["tests/engine/test_facts.py"],
    "tasks/engine/judge.py": ["tests/engine/test_judge.py"],
    "tasks/engine/ledger.py": ["tests/engine/test_ledger.py", "tests/engine/test_planner.py"],
    "tasks/engine/lease.py": ["tests/engine/test_lease.py"],
    "tasks/engine/gone.py": [
        "tests/engine/test_gone_deletes.py", "tests/engine/test_gone.py", "tests/engine/test_gone_again.py",
    ],
    "tasks/engine/swept.py": ["tests/engine/test_gone.py", "tests/engine/test_gone_needed.py"],
    "tasks/engine/missing.py": ["tests/engine/test_gone_needed.py", "tests/engine/test_gone.py"],
    "tasks/engine/source_check.py": ["tests/engine/test_gone_needed.py"],
    "tasks/engine/found.py": ["tests/engine/test_found.py"],
    "tasks/engine/confirmation.py": ["tests/engine/test_confirmed.py"],
    "tasks/engine/unconfirmed.py": ["tests/engine/test_unconfirmed.py"],
    "tasks/engine/on_existing.py": ["tests/engine/test_transfer.py"],
    "tasks/engine/recheck.py": ["tests/engine/test_recheck.py", "tests/engine/test_delta.py"],
    "tasks/engine/multipart.py": ["tests/engine/test_multipart.py"],
    "tasks/engine/bucket_control.py": [
        "tests/engine/test_bucket_control.py", "tests/engine/test_listings.py", "tests/engine/test_hiccups.py",
        "tests/engine/test_bucket_state.py",
    ],
    "tasks/engine/tries.py": ["tests/engine/test_tries.py", "tests/engine/test_multipart.py"],
    "tasks/engine/retry.py": ["tests/engine/test_retry.py"],
    "tasks/engine/outage.py": ["tests/engine/test_outage.py"],
    "tasks/engine/standstill.py": ["tests/engine/test_standstill.py"],
    "tasks/engine/budget.py": ["tests/engine/test_budget.py"],
    "tasks/engine/quota.py": ["tests/engine/test_budget.py"],
    "tasks/engine/address.py": ["tests/engine/test_address.py", "tests/engine/test_own_address.py"],
    "tasks/engine/address_kinds.py": ["tests/engine/test_address.py", "tests/engine/test_own_address.py"],
    "tasks/own_files.py": ["tests/flows/test_hostile_names.py"],
}  # fmt: skip
