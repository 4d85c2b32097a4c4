"""`ferry export`: tables of old and new addresses or of failures, and redirects for web servers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ferry.core import UserError
from flows.cli import local_run
from flows.cli.output import JsonFlag, print_json
from tasks.job_file import load_job

Format = Literal[
    "csv", "parquet", "xlsx", "nginx-map", "apache-rewritemap", "haproxy-map", "caddy", "cloudflare-bulk-redirects",
    "s3-routing", "sql",
]  # fmt: skip


def export(
    job_file: Path,
    out: Annotated[Path, Parameter(help="The file to write. Without --format: .csv, .parquet or .xlsx.")],
    *,
    what: Literal["map", "failures"] = "map",
    format_: Annotated[
        Format | None, Parameter(name="--format", help="A table, or redirects from old to new addresses.")
    ] = None,
    full: Annotated[
        bool,
        Parameter(negative="", help="Write complete URLs, with query strings, which may hold signatures."),
    ] = False,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace the file if it exists.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Write the map from old to new addresses, redirects for a web server, or the failures, to a file."""
    from ferry.cutover import export as write
    from flows.cli import terminal

    job = load_job(job_file)
    if out.exists() and out.resolve() in (Path(job.manifest_address).resolve(), job_file.resolve()):
        raise UserError(f"{out} is the job file or its manifest; export to another file")
    target = out.absolute()  # now: reading a block, for the state's credentials, changes the working directory
    if out.exists() and not overwrite:
        raise UserError(f"{out} already exists; name another file, or add --overwrite")
    state = local_run.state_to_read(job, job_file)
    written = write(state, job, target, at=datetime.now(UTC), what=what, form=format_, full=full)
    if json_:
        print_json(
            {
                "file": str(out),
                "format": written.format,
                "rows": written.rows,
                "left_out": written.left_out,
                "notes": written.notes,
            }
        )
        return 0
    terminal.out.print(f"wrote {written.rows:,} rows to {terminal.shown(out)}")
    for note in written.notes:
        terminal.out.print(terminal.shown(note))
    return 0
