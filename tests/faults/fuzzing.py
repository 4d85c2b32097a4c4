"""Seeded inputs for parsers: what is valid, cut, joined, repeated, and with words in it that mean something there."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from ferry.core.memory_budget import MIB
from tests.support.memory import forget_peak, peak_bytes

ONE_S = 20.0  # of a core, for one input


class Fuzzer:
    """``text()`` and ``data()`` give one input each; the same seed gives the same ones in the same order."""

    def __init__(self, seed: int, corpus: Sequence[str] | Sequence[bytes], words: Sequence[str] = ()) -> None:
        self.rng = random.Random(seed)
        self._texts = [one for one in corpus if isinstance(one, str)]
        self._datas = [one for one in corpus if isinstance(one, bytes)]
        self._words = list(words) or [""]

    def text(self) -> str:
        rng = self.rng
        text = rng.choice(self._texts)
        for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
            at = rng.randint(0, len(text))
            match rng.randrange(7):
                case 0:
                    text = text[:at] + rng.choice(self._words) + text[at:]
                case 1:
                    text = text[:at] + rng.choice(self._words) + text[at + rng.randint(1, 12) :]
                case 2:
                    text = text[:at] + text[at + rng.randint(1, 12) :]
                case 3:
                    other = rng.choice(self._texts)
                    text = text[:at] + other[rng.randint(0, len(other)) :]
                case 4:
                    text = text[:at] + _character(rng) + text[at + rng.randint(0, 1) :]
                case 5:
                    text = text[:at] + text[max(0, at - rng.randint(1, 12)) : at] * rng.randint(1, 4) + text[at:]
                case _:
                    text = text[:at] + rng.choice(self._words) * rng.choice((1, 2, 3, 40)) + text[at:]
        return text

    def data(self) -> bytes:
        """Half of the changes go to the first 128 bytes: headers decide most."""
        rng = self.rng
        data = bytearray(rng.choice(self._datas))
        for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
            at = rng.randrange(max(1, min(len(data), 128) if rng.random() < 0.5 else len(data)))
            match rng.randrange(6):
                case 0:
                    data[at : at + 1] = rng.randbytes(1)
                case 1:
                    data[at : at + 4] = rng.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\1\0", b"\0\0\0\1"))
                case 2:
                    del data[at : at + rng.randint(1, 64)]
                case 3:
                    data[at:at] = rng.randbytes(rng.randint(1, 16))
                case 4:
                    other = rng.choice(self._datas)
                    data[at : at + 40] = other[at : at + 40]
                case _:
                    data[at:at] = rng.choice(self._words).encode("utf-8", "surrogatepass")
        return bytes(data)


def _character(rng: random.Random) -> str:
    """Any character; those of ASCII and the odd ones (halves of pairs, marks, full width) more often."""
    return chr(rng.choice((
        rng.randrange(0x20, 0x7F), rng.randrange(0x80), rng.randrange(0x300), rng.randrange(0x2000, 0x3100),
        rng.randrange(0xFE00, 0x10000), rng.randrange(0xD800, 0xE000), rng.randrange(0x110000),
    )))  # fmt: skip


class Slow(AssertionError):
    """An input took too much of a core's time."""


def try_all(
    count: int, make: Callable[[], Any], work: Callable[[Any], None], known: Sequence[Any] = (), mib: int = 256
) -> int:
    """``work`` with each of the known cases, then with ``count`` inputs; it raises what nobody documented.

    Time is bounded for each input, in seconds of a core; memory for all of them: ``mib`` more than at the start.
    Returns how many were tried.
    """
    before = forget_peak()
    for number in range(len(known) + count):
        given = known[number] if number < len(known) else make()
        try:
            with within(ONE_S):
                work(given)
        except Exception as error:
            shown = repr(given) if len(repr(given)) < 4000 else repr(given)[:4000] + "..."
            raise AssertionError(f"input {number}: {type(error).__name__}: {error}: {shown}") from error
    grown = peak_bytes() - before
    assert grown < mib * MIB, f"{grown:,} bytes more memory than at the start"
    return len(known) + count


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises Slow after so many seconds of this process's core: a busy machine changes nothing."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Slow(f"more than {seconds:.0f} s of a core")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
