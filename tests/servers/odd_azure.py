"""A server that answers as a test says, for what Azurite does otherwise than Azure, and for misbehaviour.

Each request gets the next :class:`Answer`, and the last one again once they are used up. ``asked`` has what arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tests.servers.loopback import Answer as AnyAnswer
from tests.servers.loopback import LoopbackServer


@dataclass(frozen=True)
class Answer(AnyAnswer):
    """A response, which is a success unless said otherwise."""

    status: int = 201


def error(status: int, code: str, **headers: str) -> Answer:
    """An error as Azure sends it, with a text that no message may repeat."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>canary-secret</Message></Error>"
    return Answer(status, {"x-ms-error-code": code, **headers}, text.encode())


class Asked(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class OddAzure(LoopbackServer):
    """The server of the account ``account``."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__()
        self._answers = list(answers)
        self.asked: list[Asked] = []
        self.url += "/account"

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        self.asked.append(Asked(method, target, headers, body))
        return self._answers[min(len(self.asked), len(self._answers)) - 1]
