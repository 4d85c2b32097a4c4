"""What the first run in a new environment would wait for: compiles what Ferry imports and makes the local server's
empty database once, at set-up. A run finds neither? Then it does the same for itself, seven seconds later.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from flows.server import LocalServer, quiet_environment


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        server = LocalServer(home)
        server.start()
        try:
            os.environ.update(quiet_environment(home))
            import tasks.engine.child
            import tasks.engine.planner  # noqa: F401

            server.ready()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
