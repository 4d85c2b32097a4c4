"""Notes of multipart uploads in progress, by which the next run aborts the uploads of a killed run.

A store keeps the parts of an unfinished upload, and charges for them. A note is written before its upload begins and
deleted when it is completed or aborted. So no upload is missed, and none of another program is aborted. Once the upload
has begun, its note also has what the next run needs to resume it. It is as private as the state: Google lets anyone
write the object who has the upload's ID.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from ferry.core import in_bucket
from ferry.state.checksums import decode_checked_json, encode_checked_json
from ferry.state.files import State

FOLDER = "uploads"
MARK = "uploads/mark"


def mark_of(state: State) -> str:
    """Returns the name prefix of this job's unfinished files in a destination directory.

    It is random and kept in the state. A state's path would not do: two machines or containers may have different jobs'
    states under one path, and write to one directory.
    """
    try:
        mark = state.read(MARK)
    except FileNotFoundError:
        state.create(MARK, secrets.token_hex(16).encode())
        mark = state.read(MARK)
    return hashlib.sha256(mark).hexdigest()[:12]


class Uploads:
    """The notes of one job. The methods block on the state, so an event loop must not call them directly."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.shared = in_bucket(state.uri)  # others may write notes; a directory is the user's own

    def begin(self, bucket: str, path: str, upload: Mapping[str, Any] | None = None) -> None:
        """Writes the note of an upload; to be called before the upload begins, and again with its ID and parts."""
        self._state.write(_name(bucket, path), encode_checked_json({"bucket": bucket, "key": path, "upload": upload}))

    def end(self, bucket: str, path: str) -> None:
        """Deletes the note of an upload that was completed or aborted."""
        self._state.delete([_name(bucket, path)])

    def upload(self, bucket: str, path: str) -> Mapping[str, Any] | None:
        """Returns what :meth:`begin` was given of an upload that had begun; None if its note is gone or damaged."""
        try:
            note = decode_checked_json(self._state.read(_name(bucket, path)))
            return note["upload"] if isinstance(note["upload"], dict) else None
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def left(self, bucket: str) -> list[str]:
        """Returns the keys in this bucket for which notes exist: earlier runs may have left uploads there."""
        keys = []
        for name in self._state.list(FOLDER):
            try:
                note = json.loads(self._state.read(name))
                if note["bucket"] == bucket:
                    keys.append(str(note["key"]))
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                continue  # a damaged note names no upload
        return keys


def _name(bucket: str, path: str) -> str:
    return f"{FOLDER}/{hashlib.sha256(f'{bucket}/{path}'.encode()).hexdigest()[:32]}.json"
