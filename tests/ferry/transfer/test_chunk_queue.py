"""The queue of a chunk: slices of rows, and last tries at the end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
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


def test_later_rows_wait_for_the_others_and_last_tries_for_both() -> None:
    """Rows of the second source begin when those of the first have finished; last tries of both come after them."""
    queue = ChunkQueue(Slices(2), Slices(0, 1))
    one, _two = queue.next_rows()
    assert list(queue.next_rows()) == []
    queue.requeue_last(one)
    assert (list(queue.next_rows()), queue.finished, queue.idle) == ([], False, False)
    queue.done()
    assert (queue.finished, queue.idle) == (False, True)
    (later,) = queue.next_rows()
    assert (list(queue.next_rows()), later.last, queue.finished) == ([], False, False)
    queue.done()
    assert list(queue.next_rows()) == [one]
    queue.done()
    assert queue.finished


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


NOT_FOUND, GONE = (ObjectError(error, str(error)) for error in (ErrorClass.NOT_FOUND, ErrorClass.GONE))
FORBIDDEN, TIMEOUT = (ObjectError(error, str(error)) for error in (ErrorClass.FORBIDDEN, ErrorClass.TIMEOUT))
EXISTS = ObjectError(ErrorClass.EXISTS, "exists")


@pytest.mark.parametrize(
    ("errors", "of"),
    [
        ([NOT_FOUND], 0),
        ([NOT_FOUND, GONE], 0),
        ([NOT_FOUND, TIMEOUT], 1),
        ([FORBIDDEN, TIMEOUT], 1),
        ([NOT_FOUND, EXISTS], 1),
        ([FORBIDDEN, NOT_FOUND], 0),
        ([NOT_FOUND, FORBIDDEN], 1),
        ([NOT_FOUND, FORBIDDEN, GONE], 1),
        ([FORBIDDEN, GONE, FORBIDDEN], 0),
    ],
)
def test_which_failure_is_the_row_s(errors: list[ObjectError], of: int) -> None:
    """The table of PendingRow.failure()."""
    addresses = [f"https://h{n}.example/1.jpg?sig=x" for n in range(len(errors))]
    item = PendingRow(make_row(1, addresses[0], alternatives=addresses[1:] or None), "h0.example")
    for error in errors[:-1]:
        assert item.has_next_address
        item.to_next_address(error)
    assert (item.host, item.has_next_address) == (f"h{len(errors) - 1}.example", False)
    address, error, message = item.failure(errors[-1])
    assert error is errors[of]
    assert (address is None) == (of == 0)
    assert ("addresses were tried" in message) == (len(errors) > 1)
    assert "sig" not in message


def test_the_list_s_version_is_of_the_first_address() -> None:
    """ETag and date of the list are not compared with another address's object; digests and size are."""
    row = make_row(1, etag='"a"', last_modified="2026", md5="m", size=5, alternatives=["https://h/2.jpg"])
    item = PendingRow(row, "img.example")
    assert item.to_fetch is row
    item.tries, item.last, item.mismatches = 4, True, 1
    item.to_next_address(NOT_FOUND)
    fetched = item.to_fetch
    assert (fetched.source, fetched.etag, fetched.last_modified) == ("https://h/2.jpg", None, None)
    assert (fetched.md5, fetched.size, fetched.key, fetched.row_id) == (row.md5, row.size, row.key, row.row_id)
    assert (item.tries - item.excused, item.last, item.mismatches) == (0, False, 0)
    assert item.tries == 4  # `--limit` has counted the row
