"""What `ferry verify --public` prints: the answers that differ, in groups with examples."""

from __future__ import annotations

import dataclasses

from ferry.cutover import PublicReport
from flows.cli.output import print_json
from flows.cli.terminal import out, say, shown

MOST_EXAMPLES = 50


def show_public(report: PublicReport, code: int, *, as_json: bool) -> int:
    """Print the result of a check of public addresses, and return the exit code."""
    if as_json:
        more = {"exit_code": code, "ok": code == 0, "message": report.message, "advice": report.advice or None}
        print_json({**dataclasses.asdict(report), **more})
        return code
    left = MOST_EXAMPLES
    for group in report.groups:
        out.print(f"[bold]{group.rows:,}[/bold]  [red]{shown(group.what)}[/red]: {shown(group.how)}")
        for example in group.examples[: max(0, left)]:
            left -= 1
            say(f"  {example['public_url'] or example['key']}")
            out.print(f"    [dim]{shown(example['expected'])} -> {shown(example['found'])}[/dim]")
    if report.advice:
        say(report.advice)
    say(report.message)
    return code
