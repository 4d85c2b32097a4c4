"""Who made a proof, where, with which versions and settings."""

from __future__ import annotations

import os
import platform
import pwd
import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ferry import __version__
from ferry.core import redact, scheme_of
from ferry.job import Job

PACKAGES = ("prefect", "pyarrow", "duckdb", "pydantic")


def origin(flow_run: str) -> dict[str, Any]:
    """Returns user, host, versions, and the ID of Prefect's flow run if there is one."""
    return {
        "user": user(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "prefect_flow_run": flow_run or None,
        "versions": versions(),
    }


def user() -> str:
    """Returns the name of the process's user, or `uid N`: in a container a number may have none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def versions() -> dict[str, str]:
    """Returns the versions of Ferry, Python and the packages that matter."""
    found = {"ferry": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def settings(job: Job) -> dict[str, Any]:
    """Returns the job's settings with addresses redacted. Credentials are references already."""
    shown: dict[str, Any] = _redacted(job.model_dump(mode="json"))
    return shown


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_redacted(each) for each in value]
    return redact(value) if isinstance(value, str) and scheme_of(value) else value
