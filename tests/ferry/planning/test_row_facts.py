"""Each fact that planning gathers of a row, from ledger, manifest and chunks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from ferry.core.records import Checked, ErrorClass, Row, Status
from ferry.planning.row_facts import decide, gather, has_digests, load_rules
from ferry.state import ledger
from ferry.state.parquet import manifest_digest_of
from tests.support.helpers import directory_state, make_job, make_outcome

pytestmark = pytest.mark.matrix

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
URL = "https://img.example/1.jpg"
MD5, OTHER = "a" * 32, "b" * 32
RETRY: dict[str, Any] = {"delta": {"retry": {"not_found": {"after": "20h", "runs": 3}}}}


def http(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


def said(**given: Any) -> str | None:
    return manifest_digest_of(Row("1", URL, "1.jpg", **given))


class Planning:
    """One row of a manifest, and its outcome."""

    def __init__(self, folder: Path) -> None:
        self._state = directory_state(folder)
        self.con = ledger.connect(folder / "spool")
        self.con.execute(
            "CREATE TABLE manifest (row_id VARCHAR, row_no BIGINT, source VARCHAR, size BIGINT, md5 VARCHAR, "
            "sha256 VARCHAR, etag VARCHAR, last_modified VARCHAR, error_class VARCHAR);"
            "CREATE VIEW manifest_rows AS SELECT *, 7::UBIGINT AS described, starts_with(lower(source), 'http') AS web "
            "FROM manifest;"
            "CREATE TABLE superseded (row_id VARCHAR); CREATE TABLE problems (row_no BIGINT);"
            "CREATE TABLE held (row_id VARCHAR, attempt BIGINT, position INTEGER, described UBIGINT)"
        )

    def put(self, row: dict[str, Any], known: dict[str, Any] | None, run_no: int = 2, **settings: Any) -> None:
        """Adds the row and, with ``known``, its outcome: by default a copy of run 1 from two days ago."""
        values = {"source": URL, "error_class": None, **row}
        names = ("source", "size", "md5", "sha256", "etag", "last_modified", "error_class")
        self.con.execute(
            f"INSERT INTO manifest VALUES ('1', 7, {', '.join('?' * 7)})", [values.get(name) for name in names]
        )
        if known is not None:
            then = NOW - 2 * DAY
            times = {"started_at": then, "recorded_at": then, "bytes_read_at": then}
            outcome = make_outcome("1", **{"source": URL, "key": "1.jpg", **times, **known})
            ledger.append_outcomes(self._state, [outcome], outcome.run_no, "c", 0)
        ledger.create_latest(self.con, self._state)
        job = make_job(mode="delta", **settings)
        load_rules(self.con, job)
        gather(self.con, job, run_no, with_digests=has_digests(self.con))

    def facts(self) -> Any:
        return self.con.sql("SELECT * FROM facts").to_arrow_table().to_pylist()


@pytest.fixture
def planning(tmp_path: Path) -> Planning:
    return Planning(tmp_path)


FAILED = {"status": Status.FAILED, "error_class": ErrorClass.NOT_FOUND}
KNOWN: list[tuple[dict[str, Any] | None, dict[str, Any]]] = [
    (
        None,
        {"known": False, "status": None, "has_copy": False, "consecutive_failures": 0, "due": False, "proof": False},
    ),
    (
        {},
        {
            "known": True,
            "status": "copied",
            "has_copy": True,
            "consecutive_failures": 0,
            "attempt": 1,
            "by_plan": False,
        },
    ),
    ({"status": Status.UNCHANGED}, {"has_copy": True}),
    ({"status": Status.SKIPPED}, {"has_copy": False}),
    (FAILED, {"has_copy": False, "error_class": "not_found", "consecutive_failures": 0}),
    ({**FAILED, "dest_etag": "e"}, {"has_copy": True}),
    ({**FAILED, "consecutive_failures": 3}, {"consecutive_failures": 3}),
    ({**FAILED, "consecutive_failures": 3, "run_no": 2}, {"consecutive_failures": 2, "this_run": True}),
    ({"consecutive_failures": 3}, {"consecutive_failures": 0, "this_run": False}),
    ({**FAILED, "chunk": ""}, {"by_plan": True}),
    ({"status": Status.PENDING, "chunk": ""}, {"by_plan": False}),
    ({"settings_digest": make_job(mode="delta").settings_digest()}, {"same_settings": True}),
    ({"settings_digest": "another"}, {"same_settings": False}),
]


@pytest.mark.parametrize(("known", "expected"), KNOWN)
def test_what_the_ledger_has(known: dict[str, Any] | None, expected: dict[str, Any], planning: Planning) -> None:
    """The facts have the latest outcome, and whether the row has a copy."""
    planning.put({}, known)
    (found,) = planning.facts()
    assert found | expected == found
    assert (found["row_no"], found["superseded"], found["held"]) == (7, False, False)


def test_a_key_that_another_row_wrote_since(planning: Planning) -> None:
    """A superseded row has no copy."""
    planning.con.execute("INSERT INTO superseded VALUES ('1')")
    planning.put({}, {})
    (found,) = planning.facts()
    assert (found["superseded"], found["has_copy"]) == (True, False)


@pytest.mark.parametrize("left_out", ["error", "problem"])
def test_rows_that_are_decided_are_left_out(left_out: str, planning: Planning) -> None:
    """Unusable rows, duplicates and collisions have no facts."""
    if left_out == "problem":
        planning.con.execute("INSERT INTO problems VALUES (7)")
    planning.put({"error_class": "bad_url" if left_out == "error" else None}, {})
    assert planning.facts() == []


@pytest.mark.parametrize(
    ("attempts", "known", "held"),
    [
        ([(2, False)], {}, True),
        ([(1, False)], {}, False),
        ([(2, True)], {}, False),
        ([(1, False), (2, False)], {}, True),
        ([(1, False), (2, True)], {}, False),
        ([(1, False)], None, True),
        ([(1, True)], None, False),
    ],
)
def test_whether_a_chunk_holds_the_row(
    attempts: list[tuple[int, bool]], known: dict[str, Any] | None, held: bool, planning: Planning
) -> None:
    """A row is held if a chunk that is not stale has it for an attempt that the ledger does not have."""
    for attempt, stale in attempts:
        planning.con.execute("INSERT INTO held VALUES ('1', ?, 0, ?)", [attempt, 8 if stale else 7])
    planning.put({}, known)
    assert [found["held"] for found in planning.facts()] == [held]


@pytest.mark.parametrize(
    ("row", "known", "expected"),
    [
        ({}, {}, "nothing"),
        ({}, {"manifest_digest": said(size=10)}, "nothing"),
        ({"size": 10}, {"manifest_digest": said(size=10)}, "same"),
        ({"size": 10}, {"manifest_digest": said(size=11)}, "other"),
        ({"size": 10}, {"size": 10}, "nothing"),
        ({"size": 11}, {"size": 10}, "other"),
        ({"md5": MD5}, {"md5": MD5}, "same"),
        ({"md5": OTHER}, {"md5": MD5}, "other"),
        ({"md5": MD5}, {}, "nothing"),
        ({"sha256": MD5 * 2}, {"sha256": MD5 * 2}, "same"),
        ({"sha256": OTHER * 2}, {"sha256": MD5 * 2}, "other"),
        ({"md5": MD5, "size": 11}, {"md5": MD5, "size": 10}, "other"),
        ({"etag": '"e"'}, {"source_etag": "e"}, "same"),
        ({"etag": "e"}, {"source_etag": '"f"'}, "nothing"),
        ({"last_modified": http(NOW)}, {}, "nothing"),
    ],
)
def test_what_the_list_says_of_the_object(
    row: dict[str, Any], known: dict[str, Any], expected: str, planning: Planning
) -> None:
    """The manifest is compared with what it said at the last check, or with the copy itself."""
    planning.put(row, known)
    assert [found["said"] for found in planning.facts()] == [expected]


LATE = http(NOW - DAY)
CONDITION = {"checked_by": Checked.CONDITION, "source_etag": '"e"', "bytes_read_at": NOW - 9 * DAY, "started_at": NOW}


@pytest.mark.parametrize(
    ("row", "known", "proof"),
    [
        ({}, {}, False),
        ({"size": 10}, {}, False),
        ({"md5": MD5}, {}, True),
        ({"sha256": MD5}, {}, True),
        ({"etag": "e"}, {}, True),
        ({"md5": MD5}, None, True),
        ({"last_modified": http(NOW - 3 * DAY)}, {}, True),
        ({"last_modified": LATE}, {}, False),
        ({"last_modified": LATE}, None, False),
        ({"last_modified": "last week"}, {}, False),
        ({"last_modified": LATE}, CONDITION, True),
        ({"last_modified": LATE}, {**CONDITION, "source_etag": 'W/"e"'}, False),
        ({"last_modified": LATE}, {**CONDITION, "source_etag": None}, False),
        ({"last_modified": LATE}, {**CONDITION, "checked_by": Checked.HEAD}, False),
        ({"last_modified": LATE, "source": "s3://old/1.jpg"}, {**CONDITION, "checked_by": Checked.HEAD}, True),
        ({"last_modified": LATE, "source": "s3://old/1.jpg"}, {**CONDITION, "checked_by": Checked.SIZE}, False),
        ({"last_modified": LATE}, {**CONDITION, "bytes_read_at": None, "checked_by": Checked.BODY}, True),
    ],
)
def test_what_the_list_proves(
    row: dict[str, Any], known: dict[str, Any] | None, proof: bool, planning: Planning
) -> None:
    """A digest, an ETag or a date that was over in time is a proof, and a size is not."""
    planning.put(row, known)
    assert [found["proof"] for found in planning.facts()] == [proof]


@pytest.mark.parametrize(
    ("known", "validators"),
    [
        ({}, "none"),
        ({"source_etag": '"e"'}, "strong"),
        ({"source_etag": 'W/"e"'}, "weak"),
        ({"source_etag": '"e"', "checked_by": Checked.SIZE}, "weak"),
        ({"source_last_modified": http(NOW - 3 * DAY)}, "strong"),
        ({"source_last_modified": http(NOW - 2 * DAY)}, "racy"),
        ({"source_last_modified": http(NOW + 3 * DAY)}, "weak"),
        ({"source_last_modified": "last week"}, "weak"),
        ({"source_etag": 'W/"e"', "source_last_modified": http(NOW - 3 * DAY)}, "strong"),
        ({"source_etag": '"e"', "source_last_modified": http(NOW - DAY)}, "strong"),
    ],
)
def test_what_the_origin_gave(known: dict[str, Any], validators: str, planning: Planning) -> None:
    """A strong ETag, or a date that was over when the bytes were read, is a strong validator."""
    planning.put({}, known)
    assert [found["validators"] for found in planning.facts()] == [validators]


@pytest.mark.parametrize(
    ("source", "web"), [(URL, True), ("HTTP://img.example/1", True), ("s3://b/http", False), ("file:///a", False)]
)
def test_what_is_asked_over_http(source: str, web: bool, planning: Planning) -> None:
    """A source is checked over HTTP if its address says so."""
    planning.put({"source": source}, {})
    assert [found["web"] for found in planning.facts()] == [web]


@pytest.mark.parametrize(
    ("known", "old"),
    [
        ({"bytes_read_at": NOW - 6 * DAY}, False),
        ({"bytes_read_at": NOW - 8 * DAY}, True),
        ({"bytes_read_at": NOW + 6 * DAY}, False),
        ({"bytes_read_at": NOW + 8 * DAY}, True),
        ({"bytes_read_at": None, "started_at": NOW - 8 * DAY}, True),
        ({"bytes_read_at": None, "started_at": NOW, "recorded_at": NOW - 8 * DAY}, False),
        ({"bytes_read_at": NOW, "started_at": NOW - 8 * DAY}, False),
    ],
)
def test_whether_its_bytes_were_read_long_ago(known: dict[str, Any], old: bool, planning: Planning) -> None:
    """Bytes are old if they were read more than `revalidate_after` before or after now."""
    planning.put({}, known, delta={"revalidate_after": "7d"})
    assert [found["old"] for found in planning.facts()] == [old]


@pytest.mark.parametrize(
    ("known", "due"),
    [
        ({**FAILED, "consecutive_failures": 1, "recorded_at": NOW - DAY}, True),
        ({**FAILED, "consecutive_failures": 1, "recorded_at": NOW - DAY / 2}, False),
        ({**FAILED, "consecutive_failures": 1, "recorded_at": NOW + DAY}, True),
        ({**FAILED, "consecutive_failures": 2, "recorded_at": NOW - DAY}, True),
        ({**FAILED, "consecutive_failures": 3, "recorded_at": NOW - DAY}, False),
        ({**FAILED, "error_class": ErrorClass.BAD_KEY, "recorded_at": NOW - DAY}, False),
        ({"recorded_at": NOW - DAY}, False),
    ],
)
def test_whether_a_failed_row_is_due(known: dict[str, Any], due: bool, planning: Planning) -> None:
    """A failed row is due by the rule of its class, and at once if its last try is in the future."""
    planning.put({}, known, **RETRY)
    assert [found["due"] for found in planning.facts()] == [due]


@pytest.mark.parametrize(
    ("row", "known", "delta", "todo", "looks"),
    [
        ({}, None, True, [("new", 1, 0)], []),
        ({}, {}, False, [], []),
        ({}, {}, True, [("revalidate", 2, 0)], ["head"]),
        ({"md5": MD5}, {"md5": MD5}, True, [], []),
        ({"md5": MD5}, {"md5": OTHER}, True, [("changed", 2, 0)], ["get"]),
        ({}, {**FAILED, "attempt": 4, "consecutive_failures": 1}, True, [("retry", 5, 1)], []),
        ({}, {**FAILED, "attempt": 4, "consecutive_failures": 9}, True, [], []),
        (
            {"md5": MD5},
            {**FAILED, "md5": MD5, "dest_etag": "e", "consecutive_failures": 1},
            True,
            [("retry", 2, 1)],
            ["get"],
        ),
    ],
)
def test_what_is_to_do(
    row: dict[str, Any],
    known: dict[str, Any] | None,
    delta: bool,
    todo: list[tuple[str, int, int]],
    looks: list[str],
    planning: Planning,
) -> None:
    """Rows to do have the reason and recheck of the rules, the others have none; large tables are dropped."""
    if known is not None:
        known = {"settings_digest": make_job(mode="delta", **RETRY).settings_digest(), **known}
    planning.put(row, known, **RETRY)
    decide(planning.con, "plain", (), delta=delta)
    assert planning.con.execute("SELECT reason, attempt, consecutive_failures FROM todo").fetchall() == todo
    assert [look for (look,) in planning.con.execute("SELECT revalidate FROM revalidations").fetchall()] == looks
    left = {name for (name,) in planning.con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    assert left.isdisjoint({"cases", "decisions", "decided", "facts"})


@pytest.mark.parametrize(("classes", "todo"), [((), ["retry"]), (("not_found",), ["retry"]), (("timeout",), [])])
def test_classes_are_asked_for(classes: tuple[str, ...], todo: list[str], planning: Planning) -> None:
    """`--retry-failed` plans failures of the given classes, or all."""
    planning.put({}, FAILED)
    decide(planning.con, "retry", classes, delta=False)
    assert [reason for (reason,) in planning.con.execute("SELECT reason FROM todo").fetchall()] == todo
