"""The working directory, which a command leaves before it imports Prefect."""

from __future__ import annotations

import os
from pathlib import Path

NAMES_A_FILE = ("_FILE", "_PATH", "_DIR", "_HOME", "_BUNDLE")  # how such variables of the environment end


def leave() -> None:
    """Changes to `/`; the command's own paths have to be absolute by now. Safe to call twice.

    Prefect reads `prefect.toml`, `.env` and `pyproject.toml` of the working directory as settings, and a setting can
    name code to load. What lies there may be a list author's: an object that an earlier run wrote. Files that the
    environment names relative to the directory are named absolutely from then on. So is Prefect's home, which Prefect
    makes where it is missing.
    """
    here = Path.cwd()
    for name, value in os.environ.items():
        if not name.endswith(NAMES_A_FILE) or value[:1] in ("", "/", "~"):
            continue
        if name == "PREFECT_HOME" or (here / value).exists():
            os.environ[name] = str(here / value)
    os.chdir("/")
