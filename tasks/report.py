"""The run's report, as Markdown in the state and as Prefect artifacts with tables of failures and chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run

from ferry.core import FerryError
from ferry.state import outcome_table, write_end
from tasks import prefect_api
from tasks.reporting.text import Report, delta_table, lost_note, speed, worth_retrying
from tasks.reporting.ui import plain, slug
from tasks.run import Run


def write_summary(run: Run, report: Report) -> None:
    """Write the report to reports/run-N/summary.md in the state, and that the run has ended."""
    write_end(run.state, report.run_no, report.message)
    run.state.write(f"reports/run-{report.run_no:06d}/summary.md", markdown(run.job.name, report).encode())


def write_page(run: Run) -> str:
    """Have the planner process write the report of a run that has ended, and return its address; "" if it cannot.

    The objects have moved: a page that cannot be made is a warning, which `ferry report` may do later.
    """
    try:
        address = run.file(run.child("report", run_no=run.run_no))
    except FerryError as error:
        get_run_logger().warning(f"the report was not written ({error}); `ferry report` makes it from the state")
        return ""
    return address if "://" in address else Path(address).as_uri()


@task(name="report", task_run_name="report", cache_policy=NO_CACHE, persist_result=False)
def publish(name: str, report: Report) -> None:
    """Create the artifacts `<job>-summary`, `<job>-report`, `<job>-failures` and `<job>-chunks`.

    A failure to do so is only logged.
    """
    key = slug(name)
    with prefect_api.best_effort(get_run_logger().warning, "the run's artifacts"):
        create_markdown_artifact(
            markdown(name, report, retry_command()), key=f"{key}-summary", description=report.totals
        )
        if report.page:
            description = "The report as one HTML file"
            create_link_artifact(report.page, link_text=report.page, key=f"{key}-report", description=description)
        if report.failures:
            create_table_artifact(
                [_cells(line) for line in report.failures],
                key=f"{key}-failures",
                description=shown_of(report.counts["failed"], len(report.failures), "failed rows", "ferry failures"),
            )
        if report.chunk_lines:
            create_table_artifact(
                chunk_table(report.chunk_lines),
                key=f"{key}-chunks",
                description="Outcomes of the rows that each chunk was the last to process. To list the failed rows of "
                "a chunk: `ferry failures JOB.yaml --chunk CHUNK`",
            )


def retry_command() -> str:
    """Returns the command that retries the failed rows: through the run's deployment, or with `ferry run`."""
    if not deployment.name:
        return "ferry run JOB.yaml --retry-failed"
    return f"prefect deployment run {flow_run.flow_name}/{deployment.name} --param retry_failed=true"


def shown_of(total: int, shown: int, what: str, command: str) -> str:
    """Returns `47 failed rows`, or with fewer shown `the first 20 of 47 failed rows`, and the command for all."""
    if shown < total:
        return f"the first {shown:,} of {total:,} {what}; `{command}` lists them all"
    return f"{total:,} {what}"


def markdown(name: str, report: Report, retry: str = "ferry run JOB.yaml --retry-failed") -> str:
    """Returns the summary as Markdown, for the UI and the state."""
    counts = report.counts
    lines = [f"# {plain(name)}: run {report.run_no}", "", plain(report.message), ""]
    if report.delta is not None:
        lines += [
            "| this delta run | |",
            "|---|---:|",
            *(f"| {what} | {text} |" for what, text in delta_table(report.delta)),
            "",
        ]
    lines += ["| all rows | | |", "|---|---|---:|"]
    lines += [f"| {status} | {plain(words)} | {rows:,} |" for status, words, rows in outcome_table(counts)]
    lines += [f"| **planned** | | **{counts['planned']:,}** |", ""]
    lines += [
        f"- {speed(report)}; {report.chunks:,} {'chunk' if report.chunks == 1 else 'chunks'}, {report.cached:,} of "
        "them cached",
        f"- failure budget: {counts['failed']:,} of {report.budget:,} rows used",
    ]
    lines += [f"- {plain(change)}" for change in report.limit_changes]
    if lost := lost_note(counts.get("lost_attributes", {}), more=counts.get("lost_more", 0)):
        lines.append(f"- {plain(lost)}")
    if counts["failed"]:
        lines += ["", f"Failed rows: `ferry failures JOB.yaml`, or the artifact `{slug(name)}-failures`."]
    if worth_retrying(counts):
        lines += ["", f"Retry only the failed rows: `{retry}`."]
    if counts["pending"]:
        lines += [
            "",
            f"Rows are pending; the next run processes them. Their chunks: the artifact `{slug(name)}-chunks`.",
        ]
    return "\n".join(lines) + "\n"


def chunk_table(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the chunk table, whose cells are Markdown: a link to the task run, the outcomes, the file.

    The file is text to copy, not a link: a browser cannot open a file in a bucket or on another machine.
    """
    columns = [
        name for name in ("pending", "failed", "copied", "unchanged", "skipped") if any(line[name] for line in lines)
    ]
    return [
        {
            "chunk": f"[{line['chunk'][:12]}](/runs/task-run/{line['task_run']})"
            if line["task_run"]
            else line["chunk"],
            **{name: plain(line[name]) if isinstance(line[name], str) else line[name] for name in columns},
            "file": f"`{line['file']}`",
        }
        for line in lines
    ]


def _cells(line: dict[str, Any]) -> dict[str, Any]:
    """Returns the cells of a failed row, the important ones first: the UI shows the first columns without scrolling."""
    first = {name: line[name] for name in ("id", "error_class", "message", "key", "source")}
    return {name: plain(value) if isinstance(value, str) else value for name, value in {**first, **line}.items()}
