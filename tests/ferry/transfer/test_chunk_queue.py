"""What is left of a chunk: slices, and last tries at the end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.transfer.chunk_queue import SLICE_ROWS, ChunkQueue, PendingRow
from tests.support.helpers import make_row


class Slices:
    """Rows in slices of given sizes, as a chunk's table gives them; a slice may hold nothing that is to be done."""

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
    """First to last; a slice of which nothing is to be done is no end."""
    agenda = ChunkQueue(Slices(2, 0, 0, 1))
    assert keys(agenda.more()) == ["0.jpg", "1.jpg"]
    assert keys(agenda.more()) == ["2.jpg"]
    assert (keys(agenda.more()), agenda.over, agenda.idle) == ([], False, False)
    for _ in range(3):
        agenda.done()
    assert (agenda.idle, agenda.over) == (True, True)


def test_a_chunk_without_rows_is_over_when_it_is_asked() -> None:
    """No row: nothing to wait for."""
    agenda = ChunkQueue(Slices())
    assert list(agenda.more()) == []
    assert agenda.over


def test_last_tries_wait_for_all_others() -> None:
    """None comes while another row is under way or was never handed out; then all of them at once."""
    agenda = ChunkQueue(Slices(3, 1))
    one, two, _three = agenda.more()
    agenda.requeue_last(one)
    agenda.requeue_last(two)
    agenda.done()
    assert agenda.idle
    assert not agenda.over
    (four,) = agenda.more()
    assert list(agenda.more()) == []
    agenda.requeue_last(four)
    assert list(agenda.more()) == [one, two, four]
    assert all(item.last for item in (one, two, four))
    assert list(agenda.more()) == []
    for _ in range(3):
        agenda.done()
    assert agenda.over


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 3), max_size=5),
    ends=st.lists(st.integers(0, 2), min_size=15, max_size=15),
    data=st.data(),
)
def test_every_row_is_handed_out_as_often_as_it_comes_back(
    sizes: list[int], ends: list[int], data: st.DataObject
) -> None:
    """Whatever order rows end in, and however often they go to the end: none is lost, none doubled, and it ends."""
    agenda = ChunkQueue(Slices(*sizes))
    out: list[PendingRow] = []
    handed = [0] * sum(sizes)
    for _ in range(500):
        if agenda.over:
            break
        if not out or data.draw(st.booleans()):
            for item in agenda.more():
                handed[int(item.row.key.removesuffix(".jpg"))] += 1
                out.append(item)
        if out:
            item = out.pop(data.draw(st.integers(0, len(out) - 1)))
            number = int(item.row.key.removesuffix(".jpg"))
            if handed[number] <= ends[number]:
                agenda.requeue_last(item)
            else:
                agenda.done()
    assert agenda.over
    assert out == []
    assert handed == [times + 1 for times in ends[: len(handed)]]
