"""The run's report: Markdown and a table of failures, as Prefect artifacts and in the state."""

from __future__ import annotations

import re
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.engine.objects import ErrorClass
from tasks.engine.summary import PLAIN_WORDS
from tasks.reconcile import Report
from tasks.run import Run


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def publish(run: Run, report: Report) -> None:
    """Writes reports/run-N/summary.md and the artifacts `<job>-summary` and `<job>-failures`."""
    text = markdown(run.job.name, report)
    run.state.write(f"reports/run-{report.run_no:06d}/summary.md", text.encode())
    slug = re.sub(r"[^a-z0-9]+", "-", run.job.name.lower()).strip("-") or "job"
    create_markdown_artifact(text, key=f"{slug}-summary", description=report.message)
    if report.failures:
        create_table_artifact(
            [_cells(line) for line in report.failures],
            key=f"{slug}-failures",
            description=f"{report.counts['failed']:,} failed rows; `ferry failures` lists them all",
        )


def outcome_table(counts: dict[str, Any]) -> list[tuple[str, str, int]]:
    """``(outcome, plain words, rows)``, settled well first, then failures by size."""
    lines = [(status, words, counts[status]) for status, words in (
        ("copied", "uploaded and confirmed"), ("unchanged", "already there, the same bytes"),
    ) if counts[status]]  # fmt: skip
    skipped = counts["skipped"]
    classes = sorted(counts["classes"].items(), key=lambda item: -item[1])
    duplicates = counts["duplicates"]
    if duplicates:
        lines.append(("skipped", PLAIN_WORDS[ErrorClass.DUPLICATE], duplicates))
    if skipped > duplicates:
        lines.append(("skipped", "key taken at the destination", skipped - duplicates))
    failed = counts["failed"]
    for name, rows in classes:
        if name in (ErrorClass.DUPLICATE, ErrorClass.MISSING, ErrorClass.ALTERED):
            continue
        if name == ErrorClass.EXISTS:
            rows -= skipped - duplicates
        if rows > 0 and failed:
            lines.append(("failed", f"{PLAIN_WORDS[ErrorClass(name)]}  [{name}]", rows))
    if counts["pending"]:
        lines.append(("pending", "not settled yet", counts["pending"]))
    return lines


def markdown(name: str, report: Report) -> str:
    """The summary for the UI and for the state."""
    lines = [f"# {_escaped(name)}: run {report.run_no}", "", _escaped(report.message), ""]
    lines += ["| outcome | | rows |", "|---|---|---:|"]
    lines += [f"| {status} | {_escaped(words)} | {rows:,} |" for status, words, rows in outcome_table(report.counts)]
    lines += [f"| **planned** | | **{report.counts['planned']:,}** |", ""]
    lines += [
        f"- {report.chunks:,} chunks, {report.cached:,} of them cached",
        f"- {report.bytes:,} bytes read in {report.seconds:,.1f} s; {report.rate:,.0f} rows/s",
        f"- failure budget: {report.budget:,} rows",
    ]
    return "\n".join(lines) + "\n"


def _cells(line: dict[str, Any]) -> dict[str, Any]:
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in line.items()}


def _escaped(text: str) -> str:
    """Safe in Markdown and HTML: control characters shown, markup escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", shown) if re.search(r"[<>`|\[\]*&]", shown) else shown
