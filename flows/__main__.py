"""The entry point of `ferry` and of `python -m flows`.

The console script imports nothing from the working directory. `python -m` does, before this module can prevent it:
outside Ferry's own folder, use `python -P -m flows`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

from tasks.workers.tuning import GC_THRESHOLDS


def main() -> None:
    """Run the command line. A Ctrl-C while the libraries load ends the process without a traceback."""
    gc.set_threshold(*GC_THRESHOLDS)  # collecting garbage takes a tenth of the time of Prefect's import
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: the next file would take its number, and get the output
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)  # child processes have the same numbers
            setattr(sys, name, os.fdopen(number, "r+"))
    handler = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore SIGINT; they must stay so
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flows.cli.main import main as run_command

    signal.signal(signal.SIGINT, handler)
    run_command()


if __name__ == "__main__":
    main()
