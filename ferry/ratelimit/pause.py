"""A pause of a host, as the processes of a run tell it to each other."""

from __future__ import annotations

from typing import NamedTuple


class Pause(NamedTuple):
    """A pause of a host, with the process that began it.

    Processes tell each other the pauses that they know, also those that they were told. So a pause comes back, and
    late: each way takes up to some seconds. ``origin`` and ``number`` tell it from others, so that a process heeds it
    once. Without them two processes would keep a host paused for ever.
    """

    until: float  # by the clock of the process that has the pause
    why: str
    origin: str  # the process that began it
    number: float  # rises with each pause that the origin begins at this host
