"""Leaving the working directory, before a command imports Prefect."""

from __future__ import annotations

import os
from pathlib import Path

NAMES_A_FILE = ("_FILE", "_PATH", "_DIR", "_HOME", "_BUNDLE")  # endings of environment variables that name a file


def leave() -> None:
    """Change to `/`. The command's own paths must be absolute by now. Safe to call twice.

    Prefect reads settings from `prefect.toml`, `.env` and `pyproject.toml` in the working directory, and a setting can
    name code to load. Such a file may be an object that an earlier run wrote, with a name chosen by the manifest's
    author. Relative paths of existing files in the environment become absolute. So does PREFECT_HOME, which Prefect
    creates if it is missing.
    """
    here = Path.cwd()
    for name, value in os.environ.items():
        if not name.endswith(NAMES_A_FILE) or value[:1] in ("", "/", "~"):
            continue
        if name == "PREFECT_HOME" or (here / value).exists():
            os.environ[name] = str(here / value)
    os.chdir("/")
