"""The console script `ferry`, and `python -m flows`."""

from __future__ import annotations

import signal


def main() -> None:
    """Ctrl-C before the command has its libraries ends the process as it ends others, without a traceback."""
    handler = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it, and go on doing so
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flows import cli

    signal.signal(signal.SIGINT, handler)
    cli.main()


if __name__ == "__main__":
    main()
