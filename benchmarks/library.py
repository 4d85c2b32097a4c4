"""The objects to copy: trees of files that the origin serves, with the digest of each object.

Trees consist of hard links to the images, so that a part of them, or five times all of them, costs nothing.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from benchmarks.images import Entry

BROKEN_EVERY = 50  # 2%
_PAGE = b"<!DOCTYPE html><html><head><title>Sorry</title></head><body>Not found.</body></html>\n"


@dataclass(slots=True)
class Library:
    """A tree. ``expected``: path below ``name`` -> MD5. ``paths``: all requested paths, also broken ones."""

    name: str
    expected: dict[str, str]
    paths: list[str] = field(default_factory=list)
    bytes: int = 0

    def __post_init__(self) -> None:
        self.paths = self.paths or list(self.expected)

    def write_manifest(self, path: Path, origin: str) -> None:
        """Writes Ferry's manifest: a column of addresses."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["url"])
            writer.writerows([f"{origin}/{self.name}/{name}"] for name in self.paths)

    def write_pairs(self, path: Path, origin: str) -> None:
        """Writes the input of rclone copyurl: address and name, without a header."""
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([f"{origin}/{self.name}/{name}", name] for name in self.paths)

    def write_urls(self, path: Path, origin: str) -> None:
        path.write_text("".join(f"{origin}/{self.name}/{name}\n" for name in self.paths))


class Shelf:
    """Makes libraries below ``root``, which the origin serves, from the images in ``pool``."""

    def __init__(self, root: Path, pool: Path, entries: list[Entry]) -> None:
        self.root, self.pool, self.entries = root, pool, entries
        self._made: dict[str, Library] = {}

    def plain(self, count: int) -> Library:
        """Returns the first ``count`` images."""
        return self._once(f"n{count}", lambda name: self._copies(name, self.entries[:count], [""]))

    def five(self, count: int) -> Library:
        """Returns the first ``count`` images under five prefixes: five times as many objects."""
        prefixes = [f"r{number}/" for number in range(5)]
        return self._once(f"five{count}", lambda name: self._copies(name, self.entries[:count], prefixes))

    def broken(self, count: int) -> Library:
        """Returns images of which each 50th is missing, an HTML page or truncated, in turn; others are expected."""
        return self._once(f"broken{count}", lambda name: self._broken(name, self.entries[:count]))

    def large(self, folder: Path, count: int, megabytes: int) -> Library:
        """Returns uncompressed TIFFs like scans: ``megabytes`` each, with random pixels."""
        return self._once(f"large{count}x{megabytes}", lambda name: self._large(name, folder, count, megabytes))

    def _once(self, name: str, make: Callable[[str], Library]) -> Library:
        if name not in self._made:
            self._made[name] = make(name)
        return self._made[name]

    def _copies(self, name: str, entries: list[Entry], prefixes: list[str]) -> Library:
        for prefix in prefixes:
            for path, _, _ in entries:
                self._link(name, prefix + path, self.pool / path)
        expected = {prefix + path: md5 for prefix in prefixes for path, md5, _ in entries}
        return Library(name, expected, bytes=len(prefixes) * sum(size for _, _, size in entries))

    def _broken(self, name: str, entries: list[Entry]) -> Library:
        expected: dict[str, str] = {}
        total = 0
        for number, (path, md5, size) in enumerate(entries):
            if number % BROKEN_EVERY:
                self._link(name, path, self.pool / path)
                expected[path] = md5
                total += size
                continue
            target = self.root / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            kind = number // BROKEN_EVERY % 3
            if kind == 1:
                target.write_bytes(_PAGE)
            elif kind == 2:
                target.write_bytes((self.pool / path).read_bytes()[: size // 2])
        return Library(name, expected, [path for path, _, _ in entries], total)

    def _large(self, name: str, folder: Path, count: int, megabytes: int) -> Library:
        folder.mkdir(parents=True, exist_ok=True)
        side = int((megabytes * 1e6 / 3) ** 0.5)
        expected: dict[str, str] = {}
        for number in range(count):
            path = f"scan-{number:03d}.tif"
            kept, digest = folder / f"{megabytes}-{path}", folder / f"{megabytes}-{path}.md5"
            if not digest.exists():
                Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(kept, "TIFF")
                with kept.open("rb") as body:
                    digest.write_text(hashlib.file_digest(body, "md5").hexdigest())
            self._link(name, path, kept)
            expected[path] = digest.read_text()
        return Library(name, expected, bytes=count * side * side * 3)

    def _link(self, name: str, path: str, to: Path) -> None:
        target = self.root / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(to, target)
