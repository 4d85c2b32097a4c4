"""The selection of failed rows that a run retries, as the command line and the flow's parameter spell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class RetrySelection:
    """Whether a run takes only failed rows, and of which error classes or status codes; () is all of them.

    | `--retry-failed` | the flow's `retry_failed` | only_failed | classes |
    |---|---|---|---|
    | (absent) | false, [] | no | () |
    | alone, `=all` | true | yes | () |
    | `=not_found,404` | [not_found, 404] | yes | (not_found, 404) |
    """

    only_failed: bool = False
    classes: tuple[str, ...] = ()

    @classmethod
    def from_option(cls, names: Sequence[str]) -> Self:
        """Returns the selection for the values of `--retry-failed`."""
        return cls(bool(names), tuple(name for name in names if name != "all"))

    @classmethod
    def from_parameter(cls, value: bool | list[str]) -> Self:
        """Returns the selection for the flow's parameter `retry_failed`."""
        return cls(bool(value), tuple(value) if isinstance(value, list) else ())

    @property
    def parameter(self) -> bool | list[str]:
        """The value of the flow's parameter `retry_failed`."""
        return list(self.classes) or self.only_failed
