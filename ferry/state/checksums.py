"""Checksums of state files, which show whether a file was cut or a bit flipped (docs/decisions/0016).

A Parquet file has 16 hex digits of its SHA-256 in its name, a chunk file all 64. A JSON file contains its own.
A file whose name has no digits was written by an earlier Ferry and is not checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ferry.core import Damaged
from ferry.state.files import State

DIGITS = 16
_DIGITS_IN_NAME = re.compile(r"(?:^|[-/])([0-9a-f]{64}|[0-9a-f]{16})\.parquet$")


def checked_name(stem: str, data: bytes) -> str:
    """Returns the name of a Parquet file that contains ``data``: `<stem>-<16 digits>.parquet`."""
    return f"{stem}-{hashlib.sha256(data).hexdigest()[:DIGITS]}.parquet"


def checked_file_name(stem: str, path: Path) -> str:
    """Returns the name as :func:`checked_name` does, for the bytes of a local file."""
    return f"{stem}-{_digest(path)[:DIGITS]}.parquet"


def digest_in(name: str) -> str:
    """Returns the digest in the name of a Parquet file, or "" for a name of an earlier Ferry, which may have none."""
    found = _DIGITS_IN_NAME.search(name)
    return found[1] if found else ""


def matches_name(name: str, path: Path) -> bool:
    """Returns whether a local file has the digest in ``name``, or the name has none. Raises FileNotFoundError."""
    return _digest(path).startswith(digest_in(name))


def is_intact(state: State, name: str) -> bool:
    """Returns whether a state file exists and has the digest in its name. A bad local copy is downloaded again."""
    try:
        return matches_name(name, state.local(name)) or matches_name(name, state.local(name, refresh=True))
    except FileNotFoundError:
        return False


def verified_path(state: State, name: str, advice: str) -> Path:
    """Returns the local path of a state file after its digest was checked.

    Raises FileNotFoundError for a missing file, and Damaged, whose text ends with ``advice``, for a wrong digest.
    """
    path = state.local(name)
    if not matches_name(name, path) and not matches_name(name, state.local(name, refresh=True)):
        raise Damaged(f"state file {name} is damaged: its bytes do not match the digest in its name. {advice}")
    return path


def encode_checked_json(data: dict[str, Any]) -> bytes:
    """Returns an indented JSON document that contains its own digest."""
    return json.dumps({**data, "sha256": _json_digest(data)}, indent=1).encode()


def decode_checked_json(raw: bytes) -> dict[str, Any]:
    """Returns what :func:`encode_checked_json` was given. Raises ValueError for a damaged document."""
    data = json.loads(raw)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    digest = data.pop("sha256", None)
    if digest is not None and digest != _json_digest(data):
        raise ValueError("its content does not match its digest")
    return data


def _json_digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
