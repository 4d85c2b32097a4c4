"""`ferry report`: the report of a job as one HTML file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ferry.core import UserError, limit_arrow_memory

limit_arrow_memory(with_numpy=True)  # before the imports that load Arrow

from ferry.report import REPORT, make_report
from flows.cli import local_run
from flows.cli.output import JsonFlag, print_json
from flows.cli.terminal import say
from tasks.job_file import load_job


def report(
    job_file: Path,
    *,
    out: Annotated[Path | None, Parameter(help="The file to write. Default: reports/report.html in the state.")] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace the file of --out if it exists.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Write the report of a job as one HTML file, also during a run and after a crash."""
    job = load_job(job_file)
    if overwrite and out is None:
        raise UserError("--overwrite is for --out; the report in the state is always replaced")
    target = out.absolute() if out is not None else None  # now: reading a block changes the working directory
    if target is not None and os.path.lexists(target):
        if target.resolve() in (Path(job.manifest_address).resolve(), job_file.resolve()):
            raise UserError(f"{out} is the job file or its manifest; write the report to another file")
        if not overwrite:
            raise UserError(f"{out} already exists; name another file, or add --overwrite")
    state = local_run.state_to_read(job, job_file)
    if target is not None and "://" not in state.uri and target.resolve().is_relative_to(Path(state.uri).resolve()):
        raise UserError(f"{out} is in the state, whose files only Ferry writes; write the report to another folder")
    page = make_report(job, state).encode()
    if target is None:
        state.write(REPORT, page)
        where = f"{state.uri.rstrip('/')}/{REPORT}"
    else:
        _write(target, page)
        where = str(out)
    if json_:
        print_json({"file": where})
    else:
        say(f"wrote {where}")
    return 0


def _write(path: Path, page: bytes) -> None:
    """Writes the file with mode 0600; it appears under its name once it is complete. Raises UserError if it cannot."""
    try:
        with tempfile.TemporaryDirectory(prefix=".ferry-report-", dir=path.parent) as folder:
            part = Path(folder) / "report.html"
            part.touch(mode=0o600)
            part.write_bytes(page)
            part.replace(path)
    except OSError as exc:
        raise UserError(
            f"cannot write {path}: {exc.strerror or exc}. Choose a file in a folder that exists and is writable"
        ) from None
