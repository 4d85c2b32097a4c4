"""The command `ferry check`: a preflight that copies a sample and predicts the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ferry.core import UserError
from flows.cli import local_run, terminal
from flows.cli.output import JsonFlag, print_json
from flows.running import signals
from tasks.dry_run import check as check_job
from tasks.job_file import load_job
from tasks.own_files import refuse_own_files
from tasks.reporting.check_text import describe_check, verdict

SAMPLE_ROWS, MOST_ROWS = 200, 100_000


def check(
    job_file: Path,
    *,
    sample: Annotated[
        int, Parameter(help="Copy at least this many rows, drawn at random from all hosts.")
    ] = SAMPLE_ROWS,
    no_write: Annotated[
        bool,
        Parameter(negative="", help="Copy the sample to this machine. Only small probe objects are written."),
    ] = False,
    json_: JsonFlag = False,
) -> int:
    """Copy a sample to a prefix of its own, delete it again, and predict the run."""
    if not 1 <= sample <= MOST_ROWS:
        raise UserError(f"--sample {sample}: it must be between 1 and {MOST_ROWS:,}; or leave the option out")
    job = load_job(job_file)
    refuse_own_files(job, job_file)

    def say(text: str) -> None:
        terminal.err.print(f"[dim]{terminal.shown(job.name)}: {terminal.shown(text)}[/dim]")

    interrupts = signals.current()
    with interrupts.listening(), local_run.blocks_for(job, job_file.absolute().parent):
        found = check_job(job, sample, write=not no_write, say=say, shielded=interrupts.shielding)
    if json_:
        document = dataclasses.asdict(found)
        del document["planned"]["sample"], document["planned"]["chunks"]
        print_json({**document, "exit_code": found.exit_code, "verdict": verdict(found)})
        return found.exit_code
    style = "green" if found.exit_code == 0 else "red"
    terminal.out.print(f"[{style}]{terminal.shown(verdict(found))}[/{style}]", soft_wrap=not terminal.is_terminal())
    for line in describe_check(found):
        terminal.out.print(terminal.shown(line))
    return found.exit_code
