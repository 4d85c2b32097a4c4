"""What one plan is asked: its mode, the rows that it takes, and the access to source and destination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ferry.http import Auth
from ferry.planning.rules import Mode
from ferry.storage import Access


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The options of one plan, which the run sets."""

    run_no: int
    mode: Mode = "plain"
    classes: Sequence[str] = ()  # for the mode retry: error classes or status codes; empty takes all
    limit: int | None = None
    at_random: bool = False  # which rows ``limit`` takes: a random sample, or the first ones of the manifest
    dry: bool = False  # for `ferry plan`: count, and write nothing
    sample: int = 0  # for `ferry check`, which is dry: draw so many rows
    sample_folder: str = ""  # and write them as chunks to a state in this directory
    returned: Sequence[str] = ()  # for the modes pass and repair: the chunks of this run that returned
    token: str = ""  # of the run's lease, which is checked before each write


@dataclass(frozen=True, slots=True)
class Accesses:
    """Credentials and endpoints of source and destination, and the job's credential for web servers."""

    source: Access
    destination: Access
    auth: Auth | None = None
