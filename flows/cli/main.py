"""The start and the end of the command line: warnings, errors, signals and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import Any

from ferry.core import Fatal, FerryError, LeaseHeld, UserError
from flows.cli import local_run
from flows.cli.commands import app
from flows.cli.output import print_json
from flows.running import signals


def main() -> None:
    """Run the command line and exit. The README lists the exit codes."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect's telemetry stays off in every command
    warnings.showwarning = _show_warning
    interrupts = signals.make_current()
    code = 0
    try:
        code = _run(interrupts)
        _flush()
    except BrokenPipeError:  # `ferry failures ... | head`: the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(code if isinstance(code, int) else 0)


def _run(interrupts: signals.Interrupts) -> Any:
    try:
        return app(bare_retry_failed(sys.argv[1:]), result_action="return_value")
    except FerryError as exc:
        # A Fatal outside the flow means that the state cannot be read; nothing was copied.
        code = 3 if isinstance(exc, LeaseHeld) else 2 if isinstance(exc, UserError | Fatal) else 1
        from flows.cli import terminal

        terminal.error(str(exc))
        if "--json" in sys.argv:
            with contextlib.suppress(BrokenPipeError):
                print_json({"error": str(exc), "exit_code": code})
        return code
    except KeyboardInterrupt:
        return interrupts.exit_code


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print a FutureWarning for the user, without its line of code; print others in Python's format."""
    if category is FutureWarning:
        from flows.cli import terminal

        terminal.warning(str(message))
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), file=file or sys.stderr, end="")


def _leave(code: int) -> None:
    """End the process. Prefect's exit handlers send its last records, but retry for minutes if its server is gone.

    Without Prefect nothing is left to do: Python's own end would take a sixth of the CPU time of `ferry status`, for
    the memory of DuckDB and Arrow.
    """
    if "prefect" in sys.modules and not local_run.server_unreachable:
        sys.exit(code)
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def bare_retry_failed(arguments: list[str]) -> list[str]:
    """Returns the arguments with a bare `--retry-failed` spelled as `--retry-failed=all`."""
    return ["--retry-failed=all" if argument == "--retry-failed" else argument for argument in arguments]
