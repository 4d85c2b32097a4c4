"""Duplicates, key collisions and superseded rows: each query of collisions.py on a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import UserError
from ferry.core.records import ErrorClass, Outcome, Status
from ferry.planning.collisions import ProblemCounts, find_collisions, find_superseded, find_unrecorded, write_outcomes
from ferry.state import ledger
from ferry.storage.directory.files import FoldedName
from tests.support.helpers import by_key, directory_state, later, latest, make_outcome

pytestmark = pytest.mark.matrix

LATE = "{sha256}.jpg"
FAILED: dict[str, Any] = {"status": Status.FAILED, "error_class": ErrorClass.NOT_FOUND, "attempt": 2}


class List:
    """The rows of a manifest, whose numbers from 1 are their IDs, and their outcomes."""

    def __init__(self, folder: Path) -> None:
        self.state = directory_state(folder)
        self.con = ledger.connect(folder / "spool")
        self.con.execute(
            "CREATE TABLE manifest (row_id VARCHAR, row_no BIGINT, source VARCHAR, key VARCHAR, deferred_key BOOLEAN, "
            "id VARCHAR, size BIGINT, error_class VARCHAR, message VARCHAR, md5 VARCHAR, sha256 VARCHAR); "
            "CREATE VIEW manifest_rows AS FROM manifest; "
            "CREATE TABLE superseded (row_id VARCHAR); "
            "CREATE TABLE begun (row_id VARCHAR, key VARCHAR, run_no BIGINT)"
        )
        self.notes: list[str] = []

    def put(self, rows: Sequence[dict[str, Any]], known: dict[str, dict[str, Any]] = {}, superseded: str = "") -> None:
        """Adds rows, outcomes by row (``known``), and a row whose key another row wrote since (``superseded``)."""
        for number, row in enumerate(rows, 1):
            values = {"row_id": str(number), "row_no": number, "source": f"s{number}", "deferred_key": False, **row}
            names = ("row_id", "row_no", "source", "key", "deferred_key", "id", "size", "error_class", "message",
                     "md5", "sha256")  # fmt: skip
            given = [values.get(name) for name in names]
            self.con.execute(f"INSERT INTO manifest VALUES ({', '.join('?' * len(names))})", given)
        self.outcomes([make_outcome(row_id, **given) for row_id, given in known.items()])
        if superseded:
            self.con.execute("INSERT INTO superseded VALUES (?)", [superseded])

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        ledger.append_outcomes(self.state, outcomes, 1, "c", 0)
        ledger.create_latest(self.con, self.state)

    def problems(self, name_folding: Sequence[FoldedName] | None = None, **given: Any) -> dict[str, str]:
        """Returns problems by row as `class: message`; without ``name_folding`` it must not be asked for."""

        def ask() -> Sequence[FoldedName]:
            assert name_folding is not None
            return name_folding

        find_collisions(self.con, self.notes, **{"for_directory": False, "name_folding": ask, **given})
        lines = self.con.execute("SELECT row_id, error_class || ': ' || message FROM problems").fetchall()
        assert len(lines) == len(dict(lines))
        return dict(lines)


@pytest.fixture
def rows(tmp_path: Path) -> List:
    return List(tmp_path)


def collides(other: int) -> str:
    return f"key_collision: row {other} has the same key and another source"


def same(other: int) -> str:
    return f"duplicate: the same source and key as row {other}"


A, B = {"key": "a"}, {"key": "b"}
# Beside rows that collide there are enough others, so that the list is not refused.
FILL = [{"key": f"fill-{n}"} for n in range(40)]


@pytest.mark.parametrize(
    ("given", "known", "superseded", "problems"),
    [
        ([A, B], {}, "", {}),
        ([{**A, "source": "s"}, {**A, "source": "s"}], {}, "", {"2": same(1)}),
        ([{**A, "source": "s"}, B, {**A, "source": "s"}, {**A, "source": "s"}], {}, "", {"3": same(1), "4": same(1)}),
        ([A, A, A], {}, "", {"1": collides(3), "2": collides(1), "3": collides(1)}),
        ([A, A], {"2": {}}, "", {"1": collides(2)}),
        ([A, A], {"2": {"status": Status.UNCHANGED}}, "", {"1": collides(2)}),
        ([A, A], {"2": {"status": Status.PENDING}}, "", {"1": collides(2)}),
        ([A, A], {"2": {"status": Status.PENDING, "attempt": 0}}, "", {"1": collides(2), "2": collides(1)}),
        ([A, A], {"2": FAILED}, "", {"1": collides(2), "2": collides(1)}),
        ([A, A], {"2": {}}, "2", {"1": collides(2), "2": collides(1)}),
        ([A, A], {"1": {}, "2": {}}, "", {}),
        ([{**A, "source": "s"}, {**A, "source": "s"}], {"2": {}}, "", {"1": same(2)}),
        ([A, {**A, "error_class": "bad_url"}], {}, "", {}),
        ([{"key": LATE, "deferred_key": True}, {"key": LATE, "deferred_key": True}], {}, "", {}),
        (
            [{"key": LATE, "deferred_key": False}, {"key": LATE, "deferred_key": False}],
            {},
            "",
            {"1": collides(2), "2": collides(1)},
        ),
        ([{"key": "{ext}", "deferred_key": True}] * 2, {}, "", {"1": collides(2), "2": collides(1)}),
        ([{"key": "{{sha256}}{ext}", "deferred_key": True}] * 2, {}, "", {"1": collides(2), "2": collides(1)}),
    ],
)
def test_rows_that_want_one_key(
    given: list[dict[str, Any]], known: dict[str, Any], superseded: str, problems: dict[str, str], rows: List
) -> None:
    """Equal rows are duplicates, rows with one key collide, and a row with a copy keeps its key."""
    rows.put([*given, *FILL], known, superseded)
    assert rows.problems() == problems
    assert rows.notes == []


X, Y = {"md5": "x"}, {"md5": "y"}
SHARED: dict[str, Any] = {"status": Status.UNCHANGED, "key": "a", "copy_of": "a"}


@pytest.mark.parametrize(
    ("given", "known", "dedupe", "problems"),
    [
        ([X, X, X], {}, True, {}),
        ([X, X], {}, False, {"1": collides(2), "2": collides(1)}),
        ([X, Y], {}, True, {"1": collides(2), "2": collides(1)}),
        ([X, X, {}], {}, True, {"1": collides(3), "2": collides(1), "3": collides(1)}),
        ([{}, {}], {}, True, {"1": collides(2), "2": collides(1)}),
        ([{"sha256": "x"}, {"sha256": "x"}], {}, True, {}),
        ([{"sha256": "x", **X}, {"sha256": "x"}], {}, True, {}),
        ([{"sha256": "x", **X}, X, X], {}, True, {}),
        ([{"sha256": "x"}, X], {}, True, {"1": collides(2), "2": collides(1)}),
        ([{"sha256": "x", **X}, {"sha256": "y", **X}], {}, True, {"1": collides(2), "2": collides(1)}),
        ([{"sha256": "x", **X}, {"sha256": "x", **Y}], {}, True, {"1": collides(2), "2": collides(1)}),
        ([{**X, "size": 1}, {**X, "size": 2}], {}, True, {"1": collides(2), "2": collides(1)}),
        ([{**X, "size": 1}, X], {}, True, {}),
        ([X, X], {"1": {"key": "a"}, "2": SHARED}, True, {}),
        ([X, X], {"1": {"key": "a"}, "2": SHARED}, False, {}),  # what is stored stays
        ([X, Y], {"1": {"key": "a"}, "2": SHARED}, True, {"2": collides(1)}),
        ([X, Y], {"1": SHARED, "2": {"key": "a"}}, False, {"1": collides(2)}),
        ([{}, {}], {"1": {"key": "a"}, "2": SHARED}, True, {"2": collides(1)}),
    ],
)
def test_rows_that_share_a_key_with_dedupe(
    given: list[dict[str, Any]], known: dict[str, Any], dedupe: bool, problems: dict[str, str], rows: List
) -> None:
    """Rows share a key while the manifest has one digest for all of them; then the one that was stored keeps it."""
    rows.put([*({**A, **row} for row in given), *FILL], known)
    assert rows.problems(dedupe=dedupe) == problems


def test_what_a_listing_has_twice(rows: List) -> None:
    """Two objects of a listing with indistinguishable names collide, and are not duplicates."""
    rows.put([{**A, "source": "s"}, {**A, "source": "s"}, *FILL])
    (problem,) = rows.problems(listed=True).items()
    assert problem == (
        "2", "key_collision: another object whose name the client cannot tell from this one is row 1",
    )  # fmt: skip


FILE = "key_collision: other rows have keys below this key, which makes it a directory"
BELOW = "key_collision: another row has the key of its directory"


@pytest.mark.parametrize(
    ("known", "superseded", "problems"),
    [
        ({}, "", {"1": FILE}),
        ({"1": {}}, "", {"2": BELOW, "3": BELOW}),
        ({"1": {}}, "1", {"1": FILE}),
        ({"1": {}, "2": {}}, "", {"3": BELOW}),
        ({"2": {}}, "", {"1": FILE}),
        ({"1": {}, "2": {}, "3": {"status": Status.PENDING}}, "", {}),
    ],
)
def test_a_file_and_a_folder_of_one_name(
    known: dict[str, Any], superseded: str, problems: dict[str, str], rows: List
) -> None:
    """A file and a folder of one name collide in a directory, and not in a bucket."""
    given = [
        A,
        {"key": "a/x"},
        {"key": "a/y/z"},
        {"key": "b/a"},
        {"key": "c/a", "error_class": "bad_url"},
        {"key": "c"},
    ]
    more = [{"key": f"more-{n}"} for n in range(40)]
    rows.put([*given, {"key": "d/e"}, {"key": "d/e"}, *FILL, *more], known, superseded)
    both = {"7": collides(8), "8": collides(7)}
    assert rows.problems(for_directory=True) == both | problems
    rows.con.execute("DROP TABLE problems")
    assert rows.problems(for_directory=False) == both


def alike(other: int) -> str:
    return f"key_collision: in the destination directory this key is the same name as that of row {other}"


@pytest.mark.parametrize(
    ("keys", "difference"),
    [(("a.jpg", "A.jpg"), "case"), (("\u00e9.jpg", "e\u0301.jpg"), "form"), (("a./b. ", "a/b"), "dots")],
)
def test_names_that_a_directory_does_not_tell_apart(keys: tuple[str, str], difference: FoldedName, rows: List) -> None:
    """Names that the destination treats as one collide; for any other destination a note is added."""
    one, other = ({"key": key} for key in keys)
    rows.put([one, other, {**one, "error_class": "bad_url"}, *FILL])
    assert rows.problems([]) == {}
    assert [note.split(" differ")[0] for note in rows.notes] == ["1 groups of keys"]
    for given, problems in (
        ([difference], {"1": alike(2), "2": alike(1)}),
        ([name for name in ("dots", "form", "case") if name != difference], {}),
    ):
        rows.con.execute("DROP TABLE problems")
        assert rows.problems(given) == problems
    rows.con.execute("DROP TABLE problems")
    rows.put([], {"2": {}})
    assert rows.problems([difference]) == {"1": alike(2)}
    rows.con.execute("DROP TABLE problems; INSERT INTO superseded VALUES ('2')")
    assert rows.problems([difference]) == {"1": alike(2), "2": alike(1)}
    assert len(rows.notes) == 1


def test_names_that_the_digest_makes_are_told_apart(rows: List) -> None:
    """Keys that contain the digest do not collide."""
    rows.put([{"key": "A{sha256}", "deferred_key": True}, {"key": "a{sha256}", "deferred_key": True}, *FILL])
    assert rows.problems() == {}


@pytest.mark.parametrize(("others", "refused"), [(16, True), (17, False)])
def test_more_than_a_tenth_of_collisions_is_no_accident(others: int, refused: bool, rows: List) -> None:
    """More than a tenth of colliding rows raise UserError with a key; fewer are counted."""
    rows.put([A, A, *FILL[:others], *[{**B, "source": "s"}] * 5])
    if refused:
        with pytest.raises(UserError, match=r"2 of 23 rows have a key collision .*one of the keys: `a`"):
            rows.problems()
        return
    assert find_collisions(rows.con, [], for_directory=False) == ProblemCounts(24, 0, 4, 2)


def test_a_list_without_a_usable_row(rows: List) -> None:
    """A manifest without a usable row raises UserError with the first row's problem."""
    bad = {"key": None, "error_class": "bad_url", "message": "no such scheme"}
    rows.put([bad, bad])
    with pytest.raises(UserError, match="the first one: no such scheme"):
        rows.problems()
    rows.con.execute("DROP TABLE problems")
    rows.put([A])
    counts = find_collisions(rows.con, [], for_directory=False)
    assert (counts, counts.usable) == (ProblemCounts(3, 2, 0, 0), 1)


ONE, TWO = {"sha256": "a", "md5": "c"}, {"sha256": "b", "md5": "d"}


@pytest.mark.parametrize(
    ("first", "second", "superseded"),
    [
        (ONE, None, ""),
        (ONE, TWO, "1"),
        (ONE, ONE, ""),
        (ONE, {**TWO, "md5": "c"}, ""),
        (ONE, {**TWO, "sha256": "a"}, ""),
        ({**ONE, "run_no": 3}, TWO, "2"),
        (ONE, {**TWO, "run_no": 1, "recorded_at": later(1)}, "1"),
        ({**ONE, "recorded_at": later(1)}, {**TWO, "run_no": 1}, "2"),
        ({**ONE, "status": Status.UNCHANGED}, TWO, "1"),
        (ONE, {**TWO, "status": Status.UNCHANGED}, "1"),
        (ONE, {**ONE, "status": Status.REMOVED}, "1"),
        (ONE, {**ONE, "status": Status.PENDING}, "1"),
        (ONE, {"status": Status.SKIPPED}, ""),
        (ONE, FAILED, "1"),
        (ONE, {**FAILED, "attempt": 1}, ""),
        (ONE, {**FAILED, "attempt": 1, "error_class": ErrorClass.UPLOAD_UNCONFIRMED}, "1"),
        (ONE, {**FAILED, "chunk": ""}, ""),
        (ONE, {**FAILED, **ONE, "dest_etag": "e"}, ""),
        (ONE, {**FAILED, **TWO, "dest_etag": "e"}, "1"),
        ({**FAILED, **ONE, "dest_etag": "e"}, TWO, "1"),
        ({**FAILED, **ONE}, TWO, ""),
        (FAILED, FAILED, ""),
        ({**TWO, "key": "another"}, ONE, ""),
    ],
)
def test_whose_object_is_gone(
    first: dict[str, Any], second: dict[str, Any] | None, superseded: str, rows: List
) -> None:
    """Of two rows with one key, the first is superseded if the second may have written other bytes."""
    outcomes = [make_outcome("1", **{"key": "k", "run_no": 1, **first})]
    if second is not None:
        outcomes.append(make_outcome("2", **{"key": "k", "run_no": 2, **second}))
    rows.outcomes(outcomes)
    rows.con.execute("DROP TABLE superseded")
    find_superseded(rows.con)
    assert "".join(row_id for (row_id,) in rows.con.execute("SELECT row_id FROM superseded").fetchall()) == superseded


def test_a_row_that_may_have_begun_takes_the_key(rows: List) -> None:
    """A removed row that may have begun supersedes another row of its key."""
    rows.outcomes([make_outcome("1", key="k"), make_outcome("3", key="l")])
    rows.con.execute("DROP TABLE superseded; INSERT INTO begun VALUES ('2', 'k', 1)")
    find_superseded(rows.con)
    assert rows.con.execute("SELECT row_id FROM superseded").fetchall() == [("1",)]


def test_what_is_wrong_becomes_an_outcome_once(rows: List) -> None:
    """A problem is recorded once; a row with a copy only gets its outcome if it is superseded."""
    bad: dict[str, Any] = {"error_class": "bad_url", "message": "no such scheme", "key": None, "source": None}
    given = [bad, bad, bad, bad, {**A, "source": "s", "id": "i", "size": 9}, {**A, "source": "s"}, B]
    known: dict[str, dict[str, Any]] = {
        "2": {"status": Status.FAILED, "error_class": ErrorClass.BAD_URL, "attempt": 0},
        "3": {"status": Status.FAILED, "error_class": ErrorClass.NOT_FOUND, "attempt": 2},
        "4": {"key": "copied"},
    }
    rows.put(given, known)
    assert rows.problems() == {"6": same(5)}
    find_unrecorded(rows.con)
    write_outcomes(rows.con, rows.state, 5, "how")
    written = {row_id: outcome for row_id, outcome in latest(rows.state).items() if outcome.run_no == 5}
    assert {row_id: (o.status, o.error_class, o.attempt) for row_id, o in written.items()} == {
        "1": (Status.FAILED, ErrorClass.BAD_URL, 0),
        "3": (Status.FAILED, ErrorClass.BAD_URL, 2),
        "6": (Status.SKIPPED, ErrorClass.DUPLICATE, 0),
    }
    one = written["1"]
    assert (one.source, one.key, one.message, one.chunk, one.settings_digest) == ("", "", "no such scheme", "", "how")
    assert (one.retryable, one.requests) == (False, 0)
    assert (written["6"].source, written["6"].key) == ("s", "a")
    rows.con.execute("INSERT INTO superseded VALUES ('4')")
    rows.con.execute("DROP TABLE unrecorded")
    find_unrecorded(rows.con)
    write_outcomes(rows.con, rows.state, 6, "how")
    assert "copied" not in by_key(rows.state)
