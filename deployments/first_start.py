"""What the first run in a new environment would wait for: compiles what Ferry imports and makes the local server's
empty database once, at set-up. A run finds neither? Then it does the same for itself, seven seconds later.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path

from flows.server.home import quiet_environment
from flows.server.local import LocalServer

# By name: nothing here uses them, and a linter would take plain imports out. They are loaded while the server starts.
LOADED = (
    "flows.cli.main", "flows.cli.terminal", "flows.running.reporter", "flows.migrate", "flows.verify",
    "ferry.planning",
)  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        server = LocalServer(home)
        server.start()
        try:
            os.environ.update(quiet_environment(home))
            for module in LOADED:
                importlib.import_module(module)
            server.ready()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
