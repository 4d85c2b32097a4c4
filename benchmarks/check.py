"""Verification of the destination by a listing of MD5 digests, with rclone, on which no measurement depends."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.place import PEERS, environment

_LINE = re.compile(r"^([0-9a-f]{32}|) +(.+)$")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The numbers of objects that are missing, have wrong bytes, or are unexpected."""

    missing: int
    wrong: int
    extra: int

    @property
    def right(self) -> bool:
        return not (self.missing or self.wrong or self.extra)

    def __str__(self) -> str:
        words = ((self.missing, "missing"), (self.wrong, "wrong"), (self.extra, "too many"))
        return ", ".join(f"{count} {word}" for count, word in words if count) or "right"


def store_environment(endpoint: str, keys: tuple[str, str], remote: str = "STORE") -> dict[str, str]:
    """Returns the environment of rclone's remote ``store:``, so that no configuration file is written."""
    prefix = f"RCLONE_CONFIG_{remote}_"
    return {
        "RCLONE_CONFIG": "notfound",
        f"{prefix}TYPE": "s3",
        f"{prefix}PROVIDER": "SeaweedFS",
        f"{prefix}ENDPOINT": endpoint,
        f"{prefix}REGION": "us-east-1",
        f"{prefix}ACCESS_KEY_ID": keys[0],
        f"{prefix}SECRET_ACCESS_KEY": keys[1],
    }


def digests(place: str, env: Mapping[str, str], folder: Path, *, download: bool = False) -> dict[str, str]:
    """Returns path -> MD5 of all objects at an rclone path. With ``download``, rclone hashes the bytes."""
    command = [str(PEERS / "rclone"), "hashsum", "MD5", place, "--fast-list", "--checkers", "16"]
    env = {**environment(folder), "RCLONE_CONFIG": "notfound", **env}
    ended = subprocess.run(
        [*command, *(["--download"] if download else [])], env=env, capture_output=True, text=True, check=False
    )
    if ended.returncode and "directory not found" not in ended.stderr:
        raise RuntimeError(f"rclone hashsum ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    found = (_LINE.match(line) for line in ended.stdout.splitlines())
    return {match[2]: match[1] for match in found if match}


def compare(expected: Mapping[str, str], found: Mapping[str, str]) -> Verdict:
    there = expected.keys() & found.keys()
    wrong = sum(expected[path] != found[path] for path in there)
    return Verdict(len(expected) - len(there), wrong, len(found) - len(there))


def compare_contents(expected: Mapping[str, str], found: Mapping[str, str]) -> Verdict:
    """Compares for a tool that names objects itself: each body must be there once."""
    want, have = Counter(expected.values()), Counter(found.values())
    return Verdict((want - have).total(), 0, (have - want).total())
