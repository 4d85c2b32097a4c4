"""The rows that a verification reads: those that should have an object, or a sample of them, in parts."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ferry.core import UserError
from ferry.state import State, folded_ledger, row_ranges

# Rows that should have an object, including those that an earlier verification found wrong and no run has repaired.
SHOULD_EXIST = "(l.status IN ('copied', 'unchanged') OR l.error_class IN ('missing', 'altered'))"
SEEDS = 1 << 31
_SHARE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*\Z")


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows that a verification reads: those whose digest with the seed is at most ``up_to``.

    The same seed and rows give the same sample on every machine, in any order.
    """

    seed: int
    up_to: str  # 32 hex digits
    of: int  # number of rows that should have an object


EVERYTHING = Sample(0, "g", 0)  # "g" sorts after every hex digit
IN_SAMPLE = "md5(l.row_id || ?) <= ?"


def sample_rows(sample: str | int, rows: int) -> int:
    """Returns how many of ``rows`` a sample has. A share such as `1%` is rounded up to at least one. Raises UserError.

    | sample | of 250 rows |
    |---|---|
    | `2%` | 5 |
    | `0.1%` | 1 |
    | `100%` | 250 |
    | 20, `20` | 20 |
    | 1000 | 250 |
    | 0, `0%`, `101%`, `-1`, `1.5` | refused |
    """
    text = str(sample)
    if (share := _SHARE.match(text)) and 0 < float(share[1]) <= 100:
        return min(rows, max(1, math.ceil(rows * float(share[1]) / 100 - 1e-9)))
    if not isinstance(sample, bool) and re.fullmatch(r"\s*0*[1-9][0-9]{0,11}\s*", text):
        return min(rows, int(text))
    raise UserError(f"the sample `{text[:40]}` is neither a share (`1%`, up to `100%`) nor a count of objects (`500`)")


def check_choice(list_only: bool, sample: str | int | None, seed: int | None, public: bool = False) -> None:
    """Raises UserError for options that cannot be combined."""
    if list_only and public:
        raise UserError("a listing does not show what visitors get; leave out either --list or --public")
    if list_only and sample is not None:
        raise UserError("a listing compares every object and cannot be combined with a sample; leave one out")
    if seed is not None and sample is None:
        raise UserError("a seed needs the size of its sample: add the sample (`1%`, `500`)")
    if sample is not None:
        sample_rows(sample, 0)


def draw_sample(state: State, sample: str | int, seed: int | None = None) -> Sample:
    """Returns a random sample of the rows that should have an object, or the sample of an earlier ``seed``."""
    sample_rows(sample, 0)  # raises UserError for an invalid sample before the ledger is read
    seed = secrets.randbelow(SEEDS) if seed is None else seed
    matching = f"FROM latest l SEMI JOIN manifest USING (row_id) WHERE {SHOULD_EXIST}"
    with folded_ledger(state) as con:
        (rows,) = con.execute(f"SELECT count(*) {matching}").fetchone() or (0,)
        if not rows:
            return Sample(seed, "", 0)
        last = con.execute(
            f"SELECT md5(l.row_id || ?) AS drawn {matching} ORDER BY drawn LIMIT 1 OFFSET ?",
            [str(seed), sample_rows(sample, rows) - 1],
        ).fetchone()
    return Sample(seed, last[0] if last else "", rows)


def count_expected(state: State, sample: Sample = EVERYTHING) -> int:
    """Returns the number of rows that should have an object, or of those in the sample."""
    with folded_ledger(state) as con:
        rows = con.execute(
            f"SELECT count(*) FROM latest l SEMI JOIN manifest USING (row_id) WHERE {SHOULD_EXIST} AND {IN_SAMPLE}",
            [str(sample.seed), sample.up_to],
        )
        return int(rows.fetchall()[0][0])


def expected_rows(state: State, rows_each: int, sample: Sample = EVERYTHING) -> Iterator[pa.Table]:
    """Yields the outcomes of ``rows_each`` rows at a time, which say what the destination should have.

    The ledger is opened once, and read as it is then: outcomes that are written meanwhile do not count.
    """
    held: list[pa.RecordBatch] = []
    with folded_ledger(state) as con:
        (rows,) = con.execute("SELECT count(*) FROM latest").fetchall()[0]
        for each in row_ranges(rows):
            reader: Any = con.sql(
                f"""
                SELECT l.* FROM latest l
                SEMI JOIN (SELECT row_id FROM manifest WHERE {each.condition()}) m USING (row_id)
                WHERE {SHOULD_EXIST} AND {IN_SAMPLE} AND {each.condition("l.row_id")}
                """,
                params=[str(sample.seed), sample.up_to],
            ).to_arrow_reader(rows_each)
            for batch in reader:
                table = pa.Table.from_batches([*held, batch])
                if table.num_rows >= rows_each:
                    yield table.slice(0, rows_each)
                    table = table.slice(rows_each)
                held = table.to_batches()
        if held:
            yield pa.Table.from_batches(held)
