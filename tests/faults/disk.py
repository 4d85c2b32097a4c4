"""A disk that forgets: records what the state does to its files, and leaves what a power cut may leave of it.

The model is the weakest that POSIX allows and Linux file systems keep to: bytes are safe once their file was synced
(fsync(2)), names once their directory was; names of one directory reach the disk in order, directories apart from each
other; a rename within one directory happens wholly or not at all. A file that was not synced may be empty, cut, or
whole.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

How = Literal["nothing", "everything", "chance"]


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes were synced, or (``safe`` False) only written."""

    file: int
    data: bytes
    safe: bool


@dataclass(frozen=True, slots=True)
class Names:
    """Names in one directory that changed at once; None: gone, DIRECTORY: a directory."""

    directory: str
    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Synced:
    """A directory's names so far are on disk."""

    directory: str


@dataclass(frozen=True, slots=True)
class Promised:
    """Ferry counts on this from now on."""

    what: Any


Step = Content | Names | Synced | Promised
DIRECTORY = -1  # in the place of a file's number


@dataclass(slots=True)
class Disk:
    """Everything below ``root``, as steps; :meth:`after_cut` makes a folder of what may be left of the first few."""

    root: Path
    steps: list[Step] = field(default_factory=list)
    _known: dict[str, tuple[int, int]] = field(default_factory=dict)  # path -> its inode, and our number for the file
    _numbers: Iterator[int] = field(default_factory=itertools.count)  # inodes come again, files do not

    def promise(self, what: Any) -> None:
        self.steps.append(Promised(what))

    @contextmanager
    def recording(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Looks on at os.fsync, os.replace, os.link, os.unlink and os.mkdir. The calls themselves are made.

        Names relative to a directory's file descriptor are known by its path.
        """
        real = {name: getattr(os, name) for name in ("fsync", "replace", "link", "unlink", "mkdir")}

        def fsync(fd: int) -> None:
            real["fsync"](fd)
            path = Path(f"/proc/self/fd/{fd}").readlink()
            if path.is_dir() and (self._inside(path) or path == self.root.parent):
                self.steps.append(Synced(str(path)))
            elif self._inside(path):
                self._learn(path, safe=True)

        def replace(old: Any, new: Any, **fds: Any) -> None:
            source, target = _at(old, fds.get("src_dir_fd")), _at(new, fds.get("dst_dir_fd"))
            inside = self._inside(target)
            if inside:
                self._learn(source, safe=False)
            real["replace"](old, new, **fds)
            if inside:
                self._known[str(target)] = (_, number) = self._known.pop(str(source))
                if source.parent == target.parent:
                    self._name(target.parent, (source.name, None), (target.name, number))
                else:
                    self._name(target.parent, (target.name, number))
                    self._name(source.parent, (source.name, None))

        def link(old: Any, new: Any, **more: Any) -> None:
            source, target = _at(old, more.get("src_dir_fd")), _at(new, more.get("dst_dir_fd"))
            real["link"](old, new, **more)
            if self._inside(target):
                self._learn(source, safe=False)
                self._known[str(target)] = (_, number) = self._known[str(source)]
                self._name(target.parent, (target.name, number))

        def unlink(path: Any, **more: Any) -> None:
            gone = _at(path, more.get("dir_fd"))
            real["unlink"](path, **more)
            if self._inside(gone) and self._known.pop(str(gone), None) is not None:
                self._name(gone.parent, (gone.name, None))

        def mkdir(path: Any, *args: Any, **more: Any) -> None:
            made = _at(path, more.get("dir_fd"))
            real["mkdir"](path, *args, **more)
            if self._inside(made):
                self._name(made.parent, (made.name, DIRECTORY))

        for name, ours in (
            ("fsync", fsync),
            ("replace", replace),
            ("link", link),
            ("unlink", unlink),
            ("mkdir", mkdir),
        ):
            monkeypatch.setattr(os, name, ours)
        try:
            yield
        finally:
            for name, theirs in real.items():
                monkeypatch.setattr(os, name, theirs)

    def _inside(self, path: Any) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(str(self.root))

    def _learn(self, path: Any, *, safe: bool) -> None:
        """A file as it is now; its name is known from its first time on."""
        path = Path(path)
        if str(path) in self._known and not safe:
            return
        inode = path.stat().st_ino
        known, number = self._known.get(str(path), (None, -1))
        if known != inode:
            number = next(self._numbers)
        self.steps.append(Content(number, path.read_bytes(), safe))
        if known != inode:
            self._known[str(path)] = (inode, number)
            self._name(path.parent, (path.name, number))

    def _name(self, directory: Path, *changes: tuple[str, int | None]) -> None:
        self.steps.append(Names(str(directory), changes))

    def promised(self, count: int) -> list[Any]:
        return [step.what for step in self.steps[:count] if isinstance(step, Promised)]

    def after_cut(self, count: int, how: How, folder: Path, rng: random.Random) -> Path:
        """Writes into ``folder`` what a cut after ``count`` steps may leave: of what is not safe on disk yet nothing,
        everything, or some. Returns where the root is in it."""
        names: dict[str, dict[str, int]] = {}
        pending: dict[str, list[Names]] = {}
        contents: dict[int, Content] = {}
        for step in self.steps[:count]:
            if isinstance(step, Names):
                pending.setdefault(step.directory, []).append(step)
            elif isinstance(step, Synced):
                for change in pending.pop(step.directory, []):
                    _apply(names, change)
            elif isinstance(step, Content):
                contents[step.file] = step
        for changes in pending.values():
            kept = {"nothing": 0, "everything": len(changes), "chance": rng.randint(0, len(changes))}[how]
            for change in changes[:kept]:
                _apply(names, change)
        self._write(str(self.root.parent), folder, names, contents, how, rng)
        return folder / self.root.name

    def _write(
        self,
        directory: str,
        target: Path,
        names: dict[str, dict[str, int]],
        contents: dict[int, Content],
        how: How,
        rng: random.Random,
    ) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for name, number in names.get(directory, {}).items():
            if number == DIRECTORY:
                self._write(f"{directory}/{name}", target / name, names, contents, how, rng)
                continue
            content = contents[number]
            size = len(content.data)
            kept = size if content.safe else {"nothing": 0, "everything": size, "chance": rng.randint(0, size)}[how]
            (target / name).write_bytes(content.data[:kept])


def _at(path: Any, dir_fd: int | None) -> Path:
    return Path(path) if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink() / path


def _apply(names: dict[str, dict[str, int]], change: Names) -> None:
    entries = names.setdefault(change.directory, {})
    for name, number in change.changes:
        if number is None:
            entries.pop(name, None)
        else:
            entries[name] = number
