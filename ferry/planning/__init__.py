"""Planning: which rows of a manifest are to be done, and their chunk files."""

from ferry.planning.errors import from_planning
from ferry.planning.options import Accesses, PlanOptions
from ferry.planning.planner import make_plan
from ferry.planning.removed import count_copies, find_removed
from ferry.planning.rules import check_locations, looks_truncated

__all__ = [
    "Accesses",
    "PlanOptions",
    "check_locations",
    "count_copies",
    "find_removed",
    "from_planning",
    "looks_truncated",
    "make_plan",
]
