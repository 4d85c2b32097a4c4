"""Memory lent to decoders: never more than there is, and nobody waits for ever."""

from __future__ import annotations

import random
import threading
import time

import pytest

from ferry.images.decode_memory import FREE_BYTES, DecodeMemory

UNIT = FREE_BYTES + 1


def test_never_more_than_there_is() -> None:
    """Eight threads with pictures of all sizes: at no moment is more lent than the total, and each gets its turn."""
    memory, lock, out, most = DecodeMemory(4 * UNIT), threading.Lock(), 0, 0

    def work(seed: int) -> None:
        nonlocal out, most
        rng = random.Random(seed)
        for _ in range(30):
            with memory.borrowed() as loan:
                held = 0
                for size in sorted(rng.choices(range(5), k=3)):  # an image whose pictures become larger
                    if size <= held:
                        continue
                    with lock:
                        out -= held
                    assert loan.need(size * UNIT)
                    held = size
                    with lock:
                        out += held
                        most = max(most, out)
                    time.sleep(0.0005)
                with lock:
                    out -= held

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert most == 4
    assert memory._left == memory.total


def test_what_will_never_fit_is_refused_at_once() -> None:
    with DecodeMemory(4 * UNIT).borrowed() as loan:
        assert not loan.need(4 * UNIT + 1)
        assert loan.need(4 * UNIT)


def test_small_pictures_do_not_wait() -> None:
    """Behind a large one that has everything."""
    memory = DecodeMemory(4 * UNIT)
    with memory.borrowed() as large, memory.borrowed() as small:
        assert large.need(4 * UNIT)
        assert small.need(FREE_BYTES)


def test_it_is_given_back_after_an_error() -> None:
    memory = DecodeMemory(4 * UNIT)

    def breaks() -> None:
        with memory.borrowed() as loan:
            loan.need(3 * UNIT)
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        breaks()
    with memory.borrowed() as loan:
        assert loan.need(4 * UNIT)
