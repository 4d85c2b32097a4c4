"""What a target of redirects is: a server or a service, the file that it reads, and the file's limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from ferry.cutover.redirects.pairs import Pairs, Sight


class Limit(NamedTuple):
    """A limit of a target, and the page or source file that says so."""

    text: str
    source: str


class Target(ABC):
    """A target of redirects."""

    name: str  # as --format names it
    ending: str  # the usual ending of the file, with its dot
    sight: Sight
    limits: Sequence[Limit]

    @abstractmethod
    def write(self, pairs: Pairs, out: BinaryIO) -> Sequence[str]:
        """Writes the file, and returns lines for the user: how to use it, and limits that it meets or comes near.

        Raises UserError if the target cannot hold these redirects.
        """
