"""Which modules decide, and the tests that should notice a change in each, the quick ones first."""

from __future__ import annotations

TARGETS: dict[str, list[str]] = {
    "tasks/engine/planner.py": ["tests/engine/test_planner.py", "tests/engine/test_many_runs.py"],
    "tasks/engine/plan.py": ["tests/engine/test_plan.py", "tests/engine/test_planner.py"],
    "tasks/engine/facts.py": ["tests/engine/test_planner.py", "tests/engine/test_delta.py"],
    "tasks/engine/judge.py": ["tests/engine/test_planner.py"],
    "tasks/engine/ledger.py": ["tests/engine/test_ledger.py", "tests/engine/test_planner.py"],
    "tasks/engine/lease.py": ["tests/engine/test_lease.py"],
    "tasks/engine/gone.py": ["tests/engine/test_gone.py", "tests/engine/test_gone_again.py"],
    "tasks/engine/swept.py": ["tests/engine/test_gone.py", "tests/engine/test_gone_again.py"],
    "tasks/engine/found.py": ["tests/engine/test_store.py"],
    "tasks/engine/recheck.py": ["tests/engine/test_recheck.py", "tests/engine/test_delta.py"],
    "tasks/engine/budget.py": ["tests/engine/test_budget.py"],
    "tasks/engine/address.py": ["tests/engine/test_address.py"],
    "tasks/engine/address_kinds.py": ["tests/engine/test_address.py"],
}
