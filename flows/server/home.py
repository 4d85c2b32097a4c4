"""PREFECT_HOME of a local server: its private files, its environment, and an empty database that is ready to use.

Nothing here imports Prefect: its settings must be in the environment before that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import sys
from pathlib import Path

from ferry.core import UserError
from flows.server.api_address import VERSION

# In the virtual environment, one file per version of Prefect: each version migrates its own database.
TEMPLATE = Path(sys.prefix, "share", "ferry", f"prefect-{VERSION}.db")
# The server writes task runs in batches of 50, or after a second: 200 cached chunks take 1 s instead of 3.5 s.
RECORDER = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
# The environment variables that the server inherits: none with credentials. It runs with -P in its home directory, so
# that it neither imports code nor reads settings from the user's working directory.
INHERITED = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8",
}  # fmt: skip
# On a database that a server of the same version has prepared, skip this: it saves one second of four.
PREPARED = {"PREFECT_API_DATABASE_MIGRATE_ON_START": "false", "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}


def quiet_environment(home: Path) -> dict[str, str]:
    """Returns Prefect's settings for local runs: a home of their own, no telemetry, no requests to other hosts."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLIENT_METRICS_ENABLED": "false",
        # The pages find the API beside themselves, on whatever port they are served or forwarded. The default is 4200.
        "PREFECT_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }


class PrefectHome:
    """The folder PREFECT_HOME of a local server."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log = self.path / "server.log"
        self._database = self.path / "prefect.db"
        self._prepared_by = self.path / "prepared-by"  # holds the version of the last server that became ready here
        self._is_new = False

    def make(self) -> None:
        """Create the home and its files for the owner alone: they hold saved blocks and the key to them.

        SQLite gives its other files the mode of the database. A umask would also apply to the pages that Prefect
        unpacks beside its own code, which other users of the installation must read. Raises UserError for a folder
        that others use.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path == Path("/") or self.path.stat().st_mode & stat.S_ISVTX:
            raise UserError(
                f"{self.path} is shared with other users, and Ferry makes Prefect's home private (chmod 0700). Set "
                "PREFECT_HOME to a folder of your own"
            )
        try:
            self.path.chmod(0o700)  # it may have existed
        except OSError as exc:
            raise UserError(
                f"{self.path} holds the secrets of saved blocks, but cannot be made private (chmod 0700: "
                f"{exc.strerror}). Set PREFECT_HOME to a folder of your own"
            ) from None

    def prepare(self) -> None:
        """Create the database and the log. Only while no server uses them."""
        self._is_new = not self._database.exists()
        if self._is_new:
            self._prepared_by.unlink(missing_ok=True)
        for path in (self._database, self.log):
            path.touch(mode=0o600)
            path.chmod(0o600)
        if self._is_new and TEMPLATE.exists():
            shutil.copyfile(TEMPLATE, self._database)
            self._prepared_by.write_text(VERSION)

    def environment(self) -> dict[str, str]:
        """Returns the environment of a server of this home."""
        prepared = self._prepared_by.exists() and self._prepared_by.read_text() == VERSION
        inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
        return inherited | quiet_environment(self.path) | RECORDER | (PREPARED if prepared else {})

    def ready(self) -> None:
        """Remember that a server of this version prepared the database, and keep a copy of a new one.

        With the copy, the next new home starts seconds sooner.
        """
        self._prepared_by.write_text(VERSION)
        if not self._is_new or TEMPLATE.exists() or sys.prefix == sys.base_prefix:
            return
        with contextlib.suppress(OSError, sqlite3.Error):
            TEMPLATE.parent.mkdir(parents=True, exist_ok=True)
            part = TEMPLATE.with_suffix(f".{os.getpid()}")
            with (
                contextlib.closing(sqlite3.connect(self._database)) as source,
                contextlib.closing(sqlite3.connect(part)) as copy,
            ):
                source.backup(copy)
            part.replace(TEMPLATE)

    def end_of_log(self) -> str:
        """Returns the last lines that the server wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:]) or "(empty)"
