"""Multipart uploads under way, noted in the state: what a killed run began, the next run of the job aborts.

A store keeps the parts of an upload that nobody ends, and charges for them. The note is written before the upload
begins and goes when it has ended or was aborted, so that none is missed, and none of anybody else's is touched.
"""

from __future__ import annotations

import hashlib
import json
import secrets

from ferry.state.files import State

FOLDER = "uploads"
MARK = "uploads/mark"


def mark_of(state: State) -> str:
    """What begins the names of this job's unfinished files in a directory. It stands in the state: two machines, or two
    containers, may have states of different jobs under one path, and one directory as the destination."""
    try:
        mark = state.read(MARK)
    except FileNotFoundError:
        state.create(MARK, secrets.token_hex(16).encode())
        mark = state.read(MARK)
    return hashlib.sha256(mark).hexdigest()[:12]


class Uploads:
    """The notes of one job. They wait for the disk: not for the loop's thread."""

    def __init__(self, state: State) -> None:
        self._state = state

    def begin(self, bucket: str, path: str) -> None:
        """An upload to this key may begin once this returns."""
        self._state.write(_name(bucket, path), json.dumps({"bucket": bucket, "key": path}).encode())

    def end(self, bucket: str, path: str) -> None:
        self._state.delete([_name(bucket, path)])

    def left(self, bucket: str) -> list[str]:
        """The keys in this bucket under which earlier runs may have left an upload."""
        keys = []
        for name in self._state.list(FOLDER):
            try:
                note = json.loads(self._state.read(name))
                if note["bucket"] == bucket:
                    keys.append(str(note["key"]))
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                continue  # a note that was cut tells nothing
        return keys


def _name(bucket: str, path: str) -> str:
    return f"{FOLDER}/{hashlib.sha256(f'{bucket}/{path}'.encode()).hexdigest()[:32]}.json"
