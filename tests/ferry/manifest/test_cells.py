"""Several addresses in a cell: a row for each, with its number, in the order of the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferry.core.errors import UserError
from ferry.job import Columns, Job
from ferry.manifest.cells import split_cells
from ferry.manifest.columns import Batch
from ferry.manifest.open import open_manifest
from tests.support.helpers import chunk_rows, directory_state, make_job, plan

A, B, C = (f"https://img.example/{name}.jpg" for name in "abc")


def test_each_address_is_a_row() -> None:
    """Its other values are the cell's, but what describes one object, such as a size, counts for one alone."""
    batches = [
        Batch([1, 2], [2, 5], {"source": [f"{A}, {B}", None], "id": ["1", "2"], "size": ["10", "20"]}, {1: "bad"}),
        Batch([3, 4], [6, 7], {"source": [C, f" {A},  , {C}, "], "id": ["3", "4"], "size": ["30", "40"]}),
    ]
    first, second = split_cells(batches, ",")
    assert (list(first.row_no), first.line_no, first.problems) == ([1, 2, 3], [2, 2, 5], {2: "bad"})
    assert first.values == {
        "source": [A, B, None],
        "id": ["1", "1", "2"],
        "size": [None, None, "20"],
        "n": ["1", "2", "1"],
    }
    assert (list(second.row_no), second.line_no) == ([4, 5, 6], [6, 7, 7])
    assert second.values == {
        "source": [C, A, C],
        "id": ["3", "4", "4"],
        "size": ["30", None, None],
        "n": ["1", "1", "2"],
    }


def test_rows_without_lines_keep_their_numbers() -> None:
    """A format without lines says in which row of the list the cell is."""
    (batch,) = split_cells([Batch([7, 8], None, {"source": [f"{A}|{B}", C]})], "|")
    assert (list(batch.row_no), batch.line_no) == ([1, 2, 3], [7, 7, 8])


@pytest.mark.parametrize("ending", ["csv", "jsonl", "jsonl with arrays", "parquet"])
def test_from_the_list_to_the_keys(ending: str, tmp_path: Path) -> None:
    """`{n}` numbers the addresses of a cell in the key."""
    form, _, arrays = ending.partition(" ")
    path = tmp_path / f"list.{form}"
    cells: list[Any] = [[A, B], [C]] if arrays else [f"{A}, {B}", C]
    if form == "csv":
        path.write_text("sku,image_urls\n" + "".join(f'{n},"{cell}"\n' for n, cell in enumerate(cells)))
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"sku": n, "image_urls": cell}) + "\n" for n, cell in enumerate(cells)))
    else:
        pq.write_table(pa.table({"sku": [0, 1], "image_urls": cells}), path)
    job = make_job(manifest=str(path), columns={"source": "image_urls", "split": ", "}, key="{sku}-{n}.{source.ext}")
    state = directory_state(tmp_path)
    rows = [row for ref in plan(job, state).chunks for row in chunk_rows(state, ref)]
    assert [(row.id, row.source, row.key) for row in rows] == [
        ("0", A, "0-1.jpg"),
        ("0", B, "0-2.jpg"),
        ("1", C, "1-1.jpg"),
    ]


def test_a_separator_is_not_guessed(tmp_path: Path) -> None:
    """Without `split`, `n` is a column like any other, and a cell with two addresses is a failed row."""
    path = tmp_path / "list.csv"
    path.write_text(f'url,n\n{A},x\n"{A},{B}",y\n')
    manifest = open_manifest(path, "list.csv", Columns(), ["n"])
    assert [value for batch in manifest.batches() for value in batch.values["n"]] == ["x", "y"]
    path.write_text(f"url\n{A}\n")
    with pytest.raises(UserError, match=r"names \{n\}, and list.csv has no such column"):
        open_manifest(path, "list.csv", Columns(), ["n"])


def test_a_job_without_it_is_the_job_it_was() -> None:
    """States of earlier versions are still of the same job; with `split`, other rows are planned."""
    plain = make_job()
    assert "split" not in plain.model_dump(mode="json")["columns"]
    assert plain.location_digests()["columns"] == "7f1108a3de14cc33bde8d6bcf752f49689995235341227eb948b3dd5d79b9e2a"
    assert make_job(columns={"split": "|"}).location_digests() != plain.location_digests()
    assert Job.model_validate(
        make_job(columns={"size": None, "split": "|"}).model_dump(mode="json")
    ).columns == Columns(size=None, split="|")
