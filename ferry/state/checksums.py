"""Digests that tell a whole state file from one that was cut, or has a bit that flipped (docs/decisions/0016).

Parquet files carry 16 hex digits of their SHA-256 in their names, chunk files all 64; JSON files hold theirs inside.
A file whose name has none was written by an earlier Ferry, and is taken as it is.
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
_IN_NAME = re.compile(r"(?:^|[-/])([0-9a-f]{64}|[0-9a-f]{16})\.parquet$")


def checked_name(stem: str, data: bytes) -> str:
    """The name of a Parquet file that holds ``data``: `<stem>-<16 digits>.parquet`."""
    return f"{stem}-{hashlib.sha256(data).hexdigest()[:DIGITS]}.parquet"


def checked_file_name(stem: str, path: Path) -> str:
    """As :func:`checked_name`, of a local file's bytes."""
    return f"{stem}-{_digest(path)[:DIGITS]}.parquet"


def fits(name: str, path: Path) -> bool:
    """Are these the bytes that were written under this name? Raises FileNotFoundError."""
    found = _IN_NAME.search(name)
    return found is None or _digest(path).startswith(found[1])


def is_intact(state: State, name: str) -> bool:
    """Is the file there, with the bytes that were written under its name? A copy that is not is fetched anew."""
    try:
        return fits(name, state.local(name)) or fits(name, state.local(name, anew=True))
    except FileNotFoundError:
        return False


def verified_path(state: State, name: str, advice: str) -> Path:
    """A local path with the file's content. Raises Damaged, ending with ``advice``, when that is another than was
    written, and FileNotFoundError when it is gone."""
    path = state.local(name)
    if not fits(name, path) and not fits(name, state.local(name, anew=True)):
        raise Damaged(f"state file {name} is damaged: its bytes do not fit the digest in its name. {advice}")
    return path


def encode_checked_json(data: dict[str, Any]) -> bytes:
    """An indented JSON document with its own digest in it."""
    return json.dumps({**data, "sha256": _of(data)}, indent=1).encode()


def decode_checked_json(raw: bytes) -> dict[str, Any]:
    """What :func:`encode_checked_json` made, without the digest. Raises ValueError when it is damaged."""
    data = json.loads(raw)
    if not isinstance(data, dict):
        raise ValueError("no JSON object")
    seal = data.pop("sha256", None)
    if seal is not None and seal != _of(data):
        raise ValueError("its content does not fit its digest")
    return data


def _of(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
