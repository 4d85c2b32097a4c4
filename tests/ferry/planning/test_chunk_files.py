"""Chunk files: which rows they get, in which order, and which rows of earlier chunks are still to do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import UserError
from ferry.core.records import Row
from ferry.planning import chunk_files
from ferry.planning.row_facts import gather, has_digests, load_rules
from ferry.state import ledger
from ferry.state.parquet import read_table
from ferry.state.plan_file import ChunkRef
from tests.support.helpers import chunk_rows, directory_state, make_job, make_outcome

COLUMNS = ("row_id", "row_no", "source", "key", "deferred_key", "size", "md5", "sha256", "content_type", "etag",
           "last_modified", "id", "error_class", "alternatives", "storage_class")  # fmt: skip


class Cutting:
    """A manifest, a ledger, and the rows that planning selects."""

    def __init__(self, folder: Path) -> None:
        self.state = directory_state(folder)
        self.con = ledger.connect(folder / "spool")
        kinds = {"row_no": "BIGINT", "deferred_key": "BOOLEAN", "size": "BIGINT", "alternatives": "VARCHAR[]"}
        columns = ", ".join(f"{name} {kinds.get(name, 'VARCHAR')}" for name in COLUMNS)
        self.con.execute(f"CREATE TABLE manifest ({columns}); CREATE TABLE problems (row_no BIGINT)")
        self.con.execute(
            f"CREATE VIEW manifest_rows AS SELECT *, {chunk_files.DESCRIBED} AS described, true AS web FROM manifest;"
            "CREATE TABLE superseded (row_id VARCHAR)"
        )
        load_rules(self.con, make_job())

    def put(self, *rows: dict[str, Any]) -> None:
        for row in rows:
            number = row["row_no"]
            values = {"row_id": str(number), "source": f"s{number}", "key": f"k{number}", "deferred_key": False, **row}
            values_in_order = [values.get(name) for name in COLUMNS]
            self.con.execute(f"INSERT INTO manifest VALUES ({', '.join('?' * len(COLUMNS))})", values_in_order)

    def outcomes(self, *outcomes: tuple[str, int]) -> None:
        """Writes an outcome of each row and attempt."""
        made = [make_outcome(row_id, attempt=attempt) for row_id, attempt in outcomes]
        ledger.append_outcomes(self.state, made, 1, "c", 0)
        ledger.create_latest(self.con, self.state)

    def cut(
        self, todo: Sequence[tuple[int, str, int]], rows: int = 3, run_no: int = 1, base: bool = True, **ask: Any
    ) -> list[ChunkRef]:
        """Returns chunks of rows, each given by number, reason and attempt."""
        self.con.execute("CREATE OR REPLACE TABLE todo (row_no BIGINT, reason VARCHAR, attempt BIGINT, "
                         "consecutive_failures BIGINT, drawn UBIGINT); DROP TABLE IF EXISTS selected")  # fmt: skip
        for number, reason, attempt in todo:
            line = [number, reason, attempt, attempt - 1, number]
            self.con.execute("INSERT INTO todo VALUES (?, ?, ?, ?, ?)", line)
        chunk_files.select_rows(self.con, ask.get("limit"), ask.get("pending", 0))
        given = {"dedupe": ask.get("dedupe", False), "at_once": chunk_files.SORTED_ROWS}
        return chunk_files.write_chunks(self.con, self.state, run_no, rows, base=base, **given)

    def rows(self, chunks: Sequence[ChunkRef]) -> list[list[Row]]:
        return [chunk_rows(self.state, chunk) for chunk in chunks]

    def ids(self, chunks: Sequence[ChunkRef]) -> list[list[str]]:
        return [[row.row_id for row in rows] for rows in self.rows(chunks)]


@pytest.fixture
def cutting(tmp_path: Path) -> Cutting:
    made = Cutting(tmp_path)
    made.put(*({"row_no": number, "size": 10 * number} for number in (4, 2, 7, 1, 6, 3, 5)))
    return made


TO_DO = [(7, "new", 1), (2, "retry", 3), (3, "new", 1), (1, "new", 1), (6, "repair", 2), (5, "new", 1)]


@pytest.mark.parametrize("span", [1, 2, 1_000_000])
def test_new_rows_and_others_in_the_order_of_the_list(
    span: int, cutting: Cutting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks have the manifest's order, new rows apart from others, however many rows are sorted at once."""
    monkeypatch.setattr(chunk_files, "SORTED_ROWS", span)
    chunks = cutting.cut(TO_DO)
    assert cutting.ids(chunks) == [["1", "3", "5"], ["7"], ["2", "6"]]
    assert [(chunk.kind, chunk.rows, chunk.bytes, chunk.run_no, chunk.done) for chunk in chunks] == [
        ("base", 3, 90, 1, 0), ("base", 1, 70, 1, 0), ("retry", 2, 80, 1, 0),
    ]  # fmt: skip
    first, second = cutting.rows(chunks)[2]
    assert (first.source, first.key, first.size, first.reason, first.attempt) == ("s2", "k2", 20, "retry", 3)
    assert (second.reason, second.attempt) == ("repair", 2)
    assert cutting.cut([]) == []


def test_each_span_begins_with_freed_memory(cutting: Cutting, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the span before has left is given back: otherwise plans of many rows take hundreds of MB more."""
    monkeypatch.setattr(chunk_files, "SORTED_ROWS", 2)
    released: list[Any] = []
    monkeypatch.setattr(chunk_files, "release_freed", released.append)
    cutting.cut([(number, "new", 1) for number in range(1, 8)])
    assert released == [cutting.con] * 4


@pytest.mark.parametrize("span", [1, 3, 1_000_000])
@pytest.mark.parametrize("seed", range(6))
def test_with_dedupe_equal_digests_come_together(
    seed: int, span: int, cutting: Cutting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is in one chunk, once; a row with the digest of an earlier one of its kind comes right behind it."""
    monkeypatch.setattr(chunk_files, "SORTED_ROWS", span)
    seeded = random.Random(seed)
    digests = {n: seeded.choice([None, "a", "b", "c"]) for n in range(101, 141)}
    as_sha256 = {digest: seeded.random() < 0.5 for digest in "abc"}
    cutting.put(
        *({"row_no": n, "sha256" if as_sha256.get(digest or "") else "md5": digest} for n, digest in digests.items())
    )
    todo = [(n, seeded.choice(["new", "new", "retry", "changed"]), 1) for n in digests]
    new = {n: reason == "new" for n, reason, _ in todo}
    expected = []
    for kind in (True, False):
        place: dict[str, int] = {}
        of_kind = [n for n in digests if new[n] is kind]
        first = {n: place.setdefault(digests[n] or str(n), n) for n in of_kind}
        expected += [str(n) for n in sorted(of_kind, key=lambda n: (first[n], n))]
    chunks = cutting.cut(todo, rows=7, dedupe=True)
    assert [row_id for ids in cutting.ids(chunks) for row_id in ids] == expected
    assert {row.reason for row in cutting.rows(chunks)[0]} == {"new"}
    without = cutting.cut(todo, rows=7)
    assert [row_id for ids in cutting.ids(without) for row_id in ids] == sorted(
        expected, key=lambda n: (not new[int(n)], int(n))
    )


def test_the_same_rows_make_the_same_chunk(cutting: Cutting) -> None:
    """New rows give the same chunk in any run, and rows of a retry chunk another one in each run."""
    (base,), (later,) = cutting.cut([(1, "new", 1)]), cutting.cut([(1, "new", 1)], run_no=2)
    assert (base.digest, base.kind) == (later.digest, "base")
    assert chunk_files.without([base], [later]) == []
    (again,) = cutting.cut([(1, "new", 1)], base=False)
    (once_more,) = cutting.cut([(1, "new", 1)], run_no=2, base=False)
    assert again.kind == once_more.kind == "retry"
    assert len({base.digest, again.digest, once_more.digest}) == 3
    for chunk in (base, again):
        assert b"ferry_schema" in read_table(cutting.state.local(chunk.uri)).schema.metadata
    assert chunk_files.without([base, again], [once_more]) == [base, again]


@pytest.mark.parametrize(
    ("limit", "pending", "rows", "reasons"),
    [
        (None, 9, [["1", "3", "5"], ["7"], ["2", "6"]], {"new": 4, "repair": 1, "retry": 1}),
        (6, 0, [["1", "3", "5"], ["7"], ["2", "6"]], {"new": 4, "repair": 1, "retry": 1}),
        (5, 0, [["1", "3", "5"], ["7"], ["2"]], {"new": 4, "retry": 1}),
        (5, 3, [["1", "3"]], {"new": 2}),
        (3, 3, [], {}),
        (3, 9, [], {}),
        (0, 0, [], {}),
    ],
)
def test_a_limit(limit: int | None, pending: int, rows: list[list[str]], reasons: Any, cutting: Cutting) -> None:
    """A limit counts rows of earlier chunks first, then new rows, then the others."""
    assert cutting.ids(cutting.cut(TO_DO, limit=limit, pending=pending)) == rows
    cutting.con.execute("DROP TABLE selected")
    assert chunk_files.select_rows(cutting.con, limit, pending) == reasons


def test_a_sample_is_of_the_whole_manifest(cutting: Cutting) -> None:
    """At random, a limit takes the rows with the smallest IDs, wherever they are in the manifest; new rows first."""
    con = cutting.con
    con.execute("CREATE OR REPLACE TABLE todo (drawn UBIGINT, row_no BIGINT, reason VARCHAR)")
    con.executemany("INSERT INTO todo VALUES (?, ?, ?)", [(37 * n % 100, n, "new") for n in range(1, 100)])
    con.execute("INSERT INTO todo VALUES (0, 100, 'retry')")
    assert chunk_files.select_rows(con, 20, 0, at_random=True) == {"new": 20}
    taken = con.execute("SELECT 37 * row_no % 100 FROM selected ORDER BY 1").fetchall()
    assert taken == [(n,) for n in range(1, 21)]


def held(cutting: Cutting, chunks: Sequence[ChunkRef]) -> list[tuple[Any, ...]]:
    chunk_files.load_held(cutting.con, cutting.state, chunks)
    return cutting.con.execute(
        "SELECT row_id, attempt, position, coalesce(h.described <> m.described, false) FROM held h "
        "LEFT JOIN manifest_rows m USING (row_id) ORDER BY position, row_id"
    ).fetchall()


@pytest.mark.parametrize("files", [1, 500])
def test_what_chunks_hold(files: int, cutting: Cutting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of a chunk's row differs from the manifest's if that describes the object differently."""
    monkeypatch.setattr(chunk_files, "FILES_PER_STATEMENT", files)
    chunks = [*cutting.cut([(1, "new", 1), (2, "new", 1), (3, "new", 1)]), *cutting.cut([(1, "retry", 2)])]
    assert held(cutting, chunks) == [("1", 1, 0, False), ("2", 1, 0, False), ("3", 1, 0, False), ("1", 2, 1, False)]
    for name in ("size", "md5", "sha256", "etag", "content_type"):
        cutting.con.execute(f"UPDATE manifest SET {name} = '5' WHERE row_id = '1'")
        assert [stale for *_, stale in held(cutting, chunks)] == [True, False, False, True], name
        cutting.con.execute(f"UPDATE manifest SET {name} = {'10' if name == 'size' else 'NULL'} WHERE row_id = '1'")
    cutting.con.execute(
        "UPDATE manifest SET last_modified = 'x', id = 'y', source = 'z'; DELETE FROM manifest WHERE row_id = '2'"
    )
    assert not any(stale for *_, stale in held(cutting, chunks))
    (cutting.state.root / chunks[0].uri).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        chunk_files.load_held(cutting.con, cutting.state, chunks)


def test_rows_that_may_have_begun(cutting: Cutting) -> None:
    """A removed row may have begun if its chunk has an attempt that the ledger does not have."""
    first, second = cutting.cut([(1, "new", 1), (2, "new", 1), (3, "new", 1)]), cutting.cut([(1, "retry", 2)], run_no=5)
    cutting.con.execute("DELETE FROM manifest WHERE row_id IN ('1', '3')")
    cutting.outcomes(("1", 1))
    chunks = [*first, *second]
    chunk_files.load_held(cutting.con, cutting.state, chunks)
    chunk_files.load_begun(cutting.con, cutting.state, chunks)
    assert cutting.con.execute("SELECT * FROM begun ORDER BY 1").fetchall() == [("1", "k1", 5), ("3", "k3", 1)]


@pytest.mark.parametrize(
    ("what", "still_to_do"),
    [
        ("", [("1", 0), ("2", 0)]),
        ("INSERT INTO problems VALUES (1)", [("2", 0)]),
        ("UPDATE manifest SET error_class = 'bad_url' WHERE row_id = '1'", [("2", 0)]),
        ("DELETE FROM manifest WHERE row_id = '2'", [("1", 0)]),
        ("UPDATE manifest SET size = 5 WHERE row_id = '2'", [("1", 0)]),
        ("UPDATE manifest SET alternatives = ['https://h/2.jpg'] WHERE row_id = '2'", [("1", 0)]),
    ],
)
def test_rows_that_need_nothing_more(what: str, still_to_do: list[tuple[str, int]], cutting: Cutting) -> None:
    """Rows of chunks that are removed, unusable, in conflict or described differently need no further work."""
    chunks = cutting.cut([(1, "new", 1), (2, "new", 1)])
    if what:
        cutting.con.execute(what)
    cutting.outcomes()
    assert to_do(cutting, chunks) == still_to_do


def to_do(cutting: Cutting, chunks: Sequence[ChunkRef]) -> list[tuple[Any, ...]]:
    chunk_files.load_held(cutting.con, cutting.state, chunks)
    gather(cutting.con, make_job(), 2, with_digests=has_digests(cutting.con))
    return cutting.con.execute("SELECT row_id, position FROM facts WHERE held ORDER BY ALL").fetchall()


@pytest.mark.parametrize(("attempt", "is_open"), [(0, True), (1, True), (2, False), (3, False)])
def test_attempts_that_the_ledger_has(attempt: int, is_open: bool, cutting: Cutting) -> None:
    """Of several chunks with a row, the one with the latest attempt counts until the ledger has that attempt."""
    chunks = [*cutting.cut([(1, "new", 1)]), *cutting.cut([(1, "retry", 2)])]
    cutting.outcomes(*([("1", attempt)] if attempt else []))
    assert to_do(cutting, chunks) == [("1", 1)] * is_open
    assert to_do(cutting, chunks[::-1]) == [("1", 0)] * is_open


def test_of_two_chunks_with_an_attempt_the_later_one_counts(cutting: Cutting) -> None:
    chunks = [*cutting.cut([(1, "retry", 2)], run_no=2), *cutting.cut([(1, "retry", 2)], run_no=3)]
    cutting.outcomes(("1", 1))
    assert to_do(cutting, chunks) == [("1", 1)]
    assert to_do(cutting, chunks[::-1]) == [("1", 1)]
