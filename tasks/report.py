"""The run's report: Markdown and a table of failures, as Prefect artifacts and in the state."""

from __future__ import annotations

import re
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks import api, tally
from tasks.accounts import Report, night_table, outcome_table
from tasks.engine.urls import escaped
from tasks.run import Run


def keep(run: Run, report: Report) -> None:
    """Writes reports/run-N/summary.md into the state."""
    run.state.write(f"reports/run-{report.run_no:06d}/summary.md", markdown(run.job.name, report).encode())


@task(name="report", task_run_name="report", cache_policy=NO_CACHE, persist_result=False)
def publish(name: str, report: Report) -> None:
    """Makes the artifacts `<job>-summary` and `<job>-failures`, where Prefect takes them."""
    tally.one()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "job"
    with api.courtesy(get_run_logger().warning, "the report as artifacts of the run"):
        create_markdown_artifact(markdown(name, report), key=f"{slug}-summary", description=report.message)
        if report.failures:
            create_table_artifact(
                [_cells(line) for line in report.failures],
                key=f"{slug}-failures",
                description=f"{report.counts['failed']:,} failed rows; `ferry failures` lists them all",
            )


def markdown(name: str, report: Report) -> str:
    """The summary for the UI and for the state."""
    lines = [f"# {_escaped(name)}: run {report.run_no}", "", _escaped(report.message), ""]
    lines += ["| outcome | | rows |", "|---|---|---:|"]
    lines += [f"| {status} | {_escaped(words)} | {rows:,} |" for status, words, rows in outcome_table(report.counts)]
    lines += [f"| **planned** | | **{report.counts['planned']:,}** |", ""]
    if report.night is not None:
        lines += [
            "| this night | |",
            "|---|---:|",
            *(f"| {what} | {text} |" for what, text in night_table(report.night)),
            "",
        ]
    lines += [
        f"- {report.chunks:,} {'chunk' if report.chunks == 1 else 'chunks'}, {report.cached:,} of them cached",
        f"- {report.bytes:,} bytes in {report.seconds:,.1f} s; {report.rate:,.0f} rows/s",
        f"- failure budget: {report.budget:,} rows",
    ]
    return "\n".join(lines) + "\n"


def _cells(line: dict[str, Any]) -> dict[str, Any]:
    """What failed and why come first: the UI shows the first columns, the others when one scrolls."""
    first = {name: line[name] for name in ("id", "error_class", "message", "key", "source")}
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in {**first, **line}.items()}


def _escaped(text: str) -> str:
    """Safe in Markdown and HTML: control characters shown, markup escaped."""
    shown = escaped(text)
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", shown) if re.search(r"[<>`|\[\]*&]", shown) else shown
