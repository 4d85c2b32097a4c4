"""Manifest x ledger x destination -> chunk files."""

from ferry.planning.errors import from_planning
from ferry.planning.planner import Accesses, Ask, make_plan
from ferry.planning.removed import find_gone
from ferry.planning.rules import check_where, cut_off

__all__ = ["Accesses", "Ask", "check_where", "cut_off", "find_gone", "from_planning", "make_plan"]
