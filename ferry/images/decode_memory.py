"""What decoding takes of the memory: how much one picture needs, and how much is decoded at once.

A few KB can stand for a gigabyte of pixels. Two threads of a process decode; a picture waits while what the other one
decodes leaves too little, and one that alone needs more than all is refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

DECODE_BYTES = 1024**3  # of one process, pixels and what decoders keep beside them
FREE_BYTES = 64 * 1024**2  # pictures that need less do not wait: two threads decode


# Bytes a pixel beside the picture's own, at most; measured (Pillow 13, tests/faults/test_image_memory.py holds them).
_BESIDE = {"WebP": 13, "AVIF": 10, "TIFF": 8, "SGI": 2}
_ANIMATED = {"GIF": 12, "PNG": 12}  # the picture before, and the one to return to
_J2K_OF_A_BAND = 5  # OpenJPEG has 32 bits for each sample
_PROGRESSIVE = 8  # libjpeg keeps 16 bits of each coefficient until the last scan
_BANDS = {"1": 1, "L": 1, "P": 1, "I;16": 1, "I": 1, "F": 1, "LA": 2, "RGB": 3, "YCbCr": 3}
# Times the body's length, at most; measured likewise: metadata is kept, comments are joined, some are read whole.
_OF_THE_BODY = {
    "GIF": 3, "JPEG": 4, "WebP": 3, "AVIF": 2, "PSD": 2, "TIFF": 3, "PNG": 2, "ICO": 2, "CUR": 2, "ICNS": 2,
}  # fmt: skip


def bytes_of_a_body(name: str, length: int) -> int:
    """What opening a body of this format takes beside its pixels, whatever it holds."""
    return _OF_THE_BODY.get(name, 0) * length


def bytes_a_pixel(name: str, mode: str, *, animated: bool = False, progressive: bool = False) -> int:
    """What decoding an image of this format, and of this Pillow mode, takes at its peak."""
    own = 1 if mode in ("1", "L", "P") else 4
    beside = _BESIDE.get(name, 0) + (_PROGRESSIVE if progressive else 0) + (_ANIMATED.get(name, 0) if animated else 0)
    if name.startswith("JPEG 2000"):
        beside = _J2K_OF_A_BAND * _BANDS.get(mode, 4) + 2
    return own + beside


class DecodeMemory:
    """Memory for decoders, lent to threads. One that needs more than there is left waits."""

    def __init__(self, total: int = DECODE_BYTES) -> None:
        self.total = total
        self._left = total
        self._given_back = threading.Condition()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Loan]:
        """Nothing at first; given back at the end, however that comes."""
        loan = Loan(self)
        try:
            yield loan
        finally:
            loan.give_back()

    def _take(self, size: int) -> None:
        with self._given_back:
            self._given_back.wait_for(lambda: size <= self._left)
            self._left -= size

    def _give(self, size: int) -> None:
        with self._given_back:
            self._left += size
            self._given_back.notify_all()


class Loan:
    """What one image has of it: as much as the largest of its pictures needs."""

    def __init__(self, memory: DecodeMemory) -> None:
        self._memory = memory
        self._size = 0

    def need(self, size: int) -> bool:
        """Waits until ``size`` bytes are there for this image in all; False where there will never be as many.

        More is taken by giving back first: two that hold a part and wait for the rest would wait for ever.
        """
        if size > self._memory.total:
            return False
        if size > max(self._size, FREE_BYTES):
            self.give_back()
            self._memory._take(size)
            self._size = size
        return True

    def give_back(self) -> None:
        self._memory._give(self._size)
        self._size = 0
