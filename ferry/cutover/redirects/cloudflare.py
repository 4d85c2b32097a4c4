"""Cloudflare: the CSV file of a Bulk Redirect List."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import BinaryIO

from ferry.cutover.redirects.pairs import Pairs, Sight
from ferry.cutover.redirects.target import Limit, Target

# Redirects of an account, over all of its lists, by plan (changelog of Cloudflare Rules, 12 February 2025)
PLANS = {"Free": 10_000, "Pro": 25_000, "Business": 50_000, "Enterprise": 1_000_000}
_PAGES = "developers.cloudflare.com/rules/url-forwarding/bulk-redirects/"


class Cloudflare(Target):
    """Lines `source,target,status,preserve query,include subdomains,subpath matching,preserve path suffix`, no header.

    A source has no scheme, which matches http and https, and cannot have a query: the redirect holds for all queries.
    """

    name = "cloudflare-bulk-redirects"
    ending = ".csv"
    sight = Sight(longest=32_000, longest_new=32_000, queries=False)
    limits = (
        Limit("redirects of an account: " + ", ".join(f"{name} {most:,}" for name, most in PLANS.items()), _PAGES),
        Limit("an address has 32 KB at most", _PAGES + "reference/parameters/"),
        Limit("a source has no query: addresses that differ only in it are left out", _PAGES + "reference/"),
    )

    def write(self, pairs: Pairs, out: BinaryIO) -> Sequence[str]:
        """Writes a line for each pair. One file, since one list may hold all redirects of an account."""
        text = io.TextIOWrapper(out, "ascii", newline="")
        csv.writer(text, lineterminator="\n").writerows(
            (pair.host + pair.path, pair.new, 301, "FALSE", "FALSE", "FALSE", "FALSE") for pair in pairs.select()
        )
        text.detach()
        count = len(pairs)
        plan = next((name for name, most in PLANS.items() if count <= most), None)
        if plan is None:
            size = f"more than an account may have by default ({max(PLANS.values()):,}): ask for a higher quota"
        else:
            size = f"which the plan {plan} allows (an account has {PLANS[plan]:,}, over all of its lists)"
        return [
            f"{count:,} redirects, {size}",
            "The list needs a Bulk Redirect Rule, and the zone normalised URLs (Rules > Settings, on by default)",
        ]
