"""The order of tries in a chunk, with a clock of the test's own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.engine.agenda import Agenda, Item
from tests.engine.helpers import make_row


def agenda(count: int) -> Agenda:
    return Agenda(make_row(n) for n in range(count))


def take(from_: Agenda, now: float = 0.0) -> Item:
    item = from_.next(now)
    assert isinstance(item, Item), item
    return item


def test_rows_come_in_their_order() -> None:
    """Ready rows first to last; then nothing, until they are given back."""
    a = agenda(3)
    items = [take(a) for _ in range(3)]
    assert [item.row.key for item in items] == ["0.jpg", "1.jpg", "2.jpg"]
    assert a.next(0.0) is None
    assert not a.empty
    for item in items:
        a.done(item)
    assert a.empty


def test_an_empty_agenda_is_empty() -> None:
    """No row: nothing to wait for."""
    a = agenda(0)
    assert a.empty
    assert a.next(0.0) is None


def test_a_delayed_row_comes_when_its_time_is_there() -> None:
    """Before that others run; with none left, the answer is how long to wait."""
    a = agenda(2)
    a.retry(take(a), at=5.0)
    other = take(a)
    assert other.row.key == "1.jpg"
    assert a.next(3.0) == 2.0
    a.done(other)
    assert not a.empty
    assert take(a, 5.0).row.key == "0.jpg"


def test_a_due_row_goes_before_ready_ones_and_the_earliest_first() -> None:
    """Rows whose pause is over are not put behind the whole chunk."""
    a = agenda(4)
    first, second = take(a), take(a)
    a.retry(first, at=2.0)
    a.retry(second, at=1.0)
    assert [take(a, 2.0).row.key for _ in range(4)] == ["1.jpg", "0.jpg", "2.jpg", "3.jpg"]


def test_last_tries_wait_for_all_others() -> None:
    """None comes while another row is ready, delayed or being tried; then all of them may run at once."""
    a = agenda(4)
    one, two, three, four = (take(a) for _ in range(4))
    a.to_the_end(one)
    a.to_the_end(two)
    a.retry(three, at=9.0)
    assert a.next(1.0) == 8.0
    again = take(a, 9.0)
    assert again is three
    a.done(again)
    assert a.next(9.0) is None  # four is out
    a.done(four)
    last = [take(a, 9.0), take(a, 9.0)]
    assert last == [one, two]
    assert all(item.last for item in last)
    assert a.next(9.0) is None
    assert not a.empty
    for item in last:
        a.done(item)
    assert a.empty


def test_a_wait_is_never_nothing() -> None:
    """A timer of 0 s would spin."""
    a = agenda(1)
    a.retry(take(a), at=1.0)
    wait = a.next(1.0 - 1e-9)
    assert isinstance(wait, float)
    assert wait >= 0.001


@settings(max_examples=100)
@given(
    plans=st.lists(st.lists(st.sampled_from(["retry", "end"]), max_size=4), max_size=12),
    width=st.integers(1, 5),
    data=st.data(),
)
def test_every_row_comes_back_as_often_as_it_was_given_back(
    plans: list[list[str]], width: int, data: st.DataObject
) -> None:
    """Whatever order rows end in: each is tried once more than it was given back, none is lost, and it ends."""
    a = agenda(len(plans))
    tries = [0] * len(plans)
    out: list[Item] = []
    now = 0.0
    for _ in range(2000):
        if a.empty:
            break
        following = a.next(now) if len(out) < width else None
        if isinstance(following, Item):
            assert following not in out
            if following.last:  # only other last tries are under way
                assert all(item.last for item in out)
            tries[int(following.row.key.removesuffix(".jpg"))] += 1
            out.append(following)
            continue
        if not out:
            assert isinstance(following, float), "rows are left, none is out, and there is nothing to wait for"
            now += following
            continue
        item = out.pop(data.draw(st.integers(0, len(out) - 1)))
        number = int(item.row.key.removesuffix(".jpg"))
        script = plans[number]
        if tries[number] > len(script):
            a.done(item)
        elif script[tries[number] - 1] == "retry":
            a.retry(item, now + data.draw(st.sampled_from([0.0, 0.5, 3.0])))
        else:
            a.to_the_end(item)
    assert a.empty
    assert out == []
    assert tries == [len(script) + 1 for script in plans]
