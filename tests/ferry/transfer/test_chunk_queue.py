"""The queue of a chunk: slices of rows, and last tries at the end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.transfer.chunk_queue import SLICE_ROWS, ChunkQueue, PendingRow
from tests.support.helpers import make_row


class Slices:
    """A source that returns slices of given sizes, some of them without rows to do."""

    def __init__(self, *sizes: int) -> None:
        self._sizes = list(sizes)
        self._next = 0

    def take(self, count: int) -> list[PendingRow] | None:
        assert count == SLICE_ROWS
        if not self._sizes:
            return None
        items = [PendingRow(make_row(self._next + n), "img.example") for n in range(self._sizes.pop(0))]
        self._next += len(items)
        return items


def keys(items: object) -> list[str]:
    return [item.row.key for item in items]  # type: ignore[attr-defined]


def test_slices_come_in_order_and_settled_ones_are_passed_over() -> None:
    """Slices come in order, and an empty slice does not end the queue."""
    agenda = ChunkQueue(Slices(2, 0, 0, 1))
    assert keys(agenda.next_rows()) == ["0.jpg", "1.jpg"]
    assert keys(agenda.next_rows()) == ["2.jpg"]
    assert (keys(agenda.next_rows()), agenda.finished, agenda.idle) == ([], False, False)
    for _ in range(3):
        agenda.done()
    assert (agenda.idle, agenda.finished) == (True, True)


def test_a_chunk_without_rows_is_over_when_it_is_asked() -> None:
    """A queue without rows finishes when it is asked for rows."""
    agenda = ChunkQueue(Slices())
    assert list(agenda.next_rows()) == []
    assert agenda.finished


def test_last_tries_wait_for_all_others() -> None:
    """Last tries come at once, after all other rows have finished."""
    agenda = ChunkQueue(Slices(3, 1))
    one, two, _three = agenda.next_rows()
    agenda.requeue_last(one)
    agenda.requeue_last(two)
    agenda.done()
    assert agenda.idle
    assert not agenda.finished
    (four,) = agenda.next_rows()
    assert list(agenda.next_rows()) == []
    agenda.requeue_last(four)
    assert list(agenda.next_rows()) == [one, two, four]
    assert all(item.last for item in (one, two, four))
    assert list(agenda.next_rows()) == []
    for _ in range(3):
        agenda.done()
    assert agenda.finished


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 3), max_size=5),
    ends=st.lists(st.integers(0, 2), min_size=15, max_size=15),
    data=st.data(),
)
def test_every_row_is_handed_out_as_often_as_it_comes_back(
    sizes: list[int], ends: list[int], data: st.DataObject
) -> None:
    """Each row is returned once per try, in whatever order rows finish, and the queue ends."""
    agenda = ChunkQueue(Slices(*sizes))
    out: list[PendingRow] = []
    handed = [0] * sum(sizes)
    for _ in range(500):
        if agenda.finished:
            break
        if not out or data.draw(st.booleans()):
            for item in agenda.next_rows():
                handed[int(item.row.key.removesuffix(".jpg"))] += 1
                out.append(item)
        if out:
            item = out.pop(data.draw(st.integers(0, len(out) - 1)))
            number = int(item.row.key.removesuffix(".jpg"))
            if handed[number] <= ends[number]:
                agenda.requeue_last(item)
            else:
                agenda.done()
    assert agenda.finished
    assert out == []
    assert handed == [times + 1 for times in ends[: len(handed)]]
