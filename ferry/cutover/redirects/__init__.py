"""Redirects from old addresses to new ones, as files of web servers and services."""

from ferry.cutover.redirects.nginx import Nginx
from ferry.cutover.redirects.pairs import LeftOut, Pair, Pairs, make_pairs
from ferry.cutover.redirects.target import Limit, Target

TARGETS: dict[str, Target] = {target.name: target for target in (Nginx(),)}

__all__ = ["TARGETS", "LeftOut", "Limit", "Pair", "Pairs", "Target", "make_pairs"]
