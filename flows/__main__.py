"""The console script `ferry`, and `python -m flows`.

The script imports nothing from the working directory. `python -m` does, before anything here can prevent it: outside
Ferry's own folder it is `python -P -m flows`.
"""

from __future__ import annotations

import gc
import signal

from tasks.workers.tuning import GC_THRESHOLDS


def main() -> None:
    """Ctrl-C before the command has its libraries ends the process as it ends others, without a traceback."""
    gc.set_threshold(*GC_THRESHOLDS)  # looking for cycles takes a tenth of the time of Prefect's import
    handler = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it, and go on doing so
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flows.cli import commands as cli

    signal.signal(signal.SIGINT, handler)
    cli.main()


if __name__ == "__main__":
    main()
