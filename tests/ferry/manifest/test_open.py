"""Manifests in every format read back as they were written."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Literal

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.core.errors import UserError
from ferry.job.columns import Columns
from ferry.manifest.open import Manifest, open_manifest

pytestmark = pytest.mark.matrix

URL = "https://a.example/x.jpg"


def opened(path: Path, columns: Columns | None = None, **more: object) -> Manifest:
    return open_manifest(path, path.name, columns or Columns(), **more)  # type: ignore[arg-type]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def column(manifest: Manifest, name: str) -> list[str | None]:
    return [value for batch in manifest.batches() for value in batch.values[name]]


def row_numbers(manifest: Manifest) -> list[int]:
    return [number for batch in manifest.batches() for number in batch.row_no]


def problems(manifest: Manifest) -> dict[int, str]:
    return {batch.row_no[index]: why for batch in manifest.batches() for index, why in batch.problems.items()}


def refused(path: Path, columns: Columns | None = None, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        for _ in opened(path, columns, **more).batches():
            pass
    return str(caught.value)


# The XML of workbooks cannot contain control characters, and _x0041_ is an escape in it.
text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="_\ufffe\uffff"), max_size=12)
cells = st.lists(st.tuples(text.map(lambda t: "https://h/" + t), text, text), min_size=1, max_size=30)


def write(path: Path, rows: list[tuple[str, str, str]]) -> None:
    """Writes the rows in the format of the path's extension."""
    header = ("url", "sku", "title")
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[at] for row in rows] for at, name in enumerate(header)}), path)
    elif path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        assert book.active is not None
        for number, row in enumerate((header, *rows), 1):
            for at, value in enumerate(row, 1):
                book.active.cell(number, at).data_type = "s"
                book.active.cell(number, at)._value = value
        book.save(path)
    else:
        out = io.StringIO(newline="")
        if ".jsonl" in path.name or ".ndjson" in path.name:
            out.write("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
        else:
            csv.writer(out, delimiter="\t" if ".tsv" in path.name else ",").writerows([header, *rows])
        data = out.getvalue().encode()
        if path.suffix == ".gz":
            data = gzip.compress(data)
        elif path.suffix == ".zst":
            data = pa.compress(data, codec="zstd", asbytes=True)
        path.write_bytes(data)


@pytest.mark.parametrize(
    "ending", ["csv", "tsv", "jsonl", "ndjson", "parquet", "xlsx", "csv.gz", "csv.zst", "jsonl.gz"]
)
def test_round_trip(ending: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any rows written in any format read back the same, in order, with rows numbered from 1."""
    folder = tmp_path_factory.mktemp("lists")

    @settings(max_examples=4 if ending == "xlsx" else 40, deadline=None)  # each workbook starts a process
    @given(cells)
    def check(rows: list[tuple[str, str, str]]) -> None:
        path = folder / f"list.{ending}"
        write(path, rows)
        manifest = opened(path, needed=["title"])
        assert manifest.recognised == {"source": "url", "id": "sku"}
        batches = list(manifest.batches())
        for at, name in enumerate(("source", "id", "title")):
            found, due = [value for batch in batches for value in batch.values[name]], [row[at] or None for row in rows]
            if ending == "xlsx":  # a cell of nothing but white space is an empty cell
                found, due = ([value if value and value.strip() else None for value in side] for side in (found, due))
            assert found == due
        assert row_numbers(manifest) == list(range(1, len(rows) + 1))  # it can be read again

    check()


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)] * 3),
        min_size=1,
        max_size=20,
    ),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    everything=st.booleans(),
)
def test_csv_any_text(
    rows: list[tuple[str, str, str]],
    delimiter: str,
    end: str,
    everything: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Quotes, delimiters, line breaks and control characters inside fields are read in every dialect."""
    out = io.StringIO(newline="")
    # If lines end in "\n", Python's writer does not quote a bare carriage return, which no reader can interpret.
    quote_all = everything or end == "\n"
    quoting: Literal[0, 1] = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([("url", "sku", "x"), *rows])
    manifest = opened(put(tmp_path_factory.getbasetemp(), "any.csv", out.getvalue()), needed=["x"])
    for at, name in enumerate(("source", "id", "x")):
        assert column(manifest, name) == [row[at] or None for row in rows]


def test_csv_line_numbers(tmp_path: Path) -> None:
    """Each row has the line where it begins, after quoted line breaks and blank lines."""
    path = put(tmp_path, "a.csv", f'\nurl,t\n{URL},"a\nb"\n\n{URL},c\n')
    found = [number for batch in opened(path, needed=["t"]).batches() for number in batch.line_no or ()]
    assert found == [3, 6]


def test_csv_blocks(tmp_path: Path) -> None:
    """Records across the reader's blocks are complete and have the right lines."""
    value = "x\n" * 200_000
    path = put(
        tmp_path, "a.csv", f'url,t\n{URL},1\n{URL},"{value}"\n' + f"{URL},2\n" * 30_000 + f'{URL},"{value}"\n{URL},3'
    )
    manifest = opened(path, needed=["t"])
    assert column(manifest, "t") == ["1", value, *["2"] * 30_000, value, "3"]
    assert [b.line_no[-1] for b in manifest.batches() if b.line_no][-1] == 2 + 200_001 + 30_000 + 200_001 + 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    """UTF-8 with or without a byte order mark, and UTF-16 with one, are read."""
    path = put(tmp_path, "a.csv", f"url,sku\n{URL},Ä日😀\n".encode(encoding))
    assert column(opened(path), "id") == ["Ä日😀"]
    assert opened(path).recognised == {"source": "url", "id": "sku"}


def test_excel_dialect(tmp_path: Path) -> None:
    """Excel's `sep=;` line is not the header."""
    assert column(opened(put(tmp_path, "a.csv", f"sep=;\r\nurl;sku\r\n{URL};a,b\r\n")), "id") == ["a,b"]


@pytest.mark.parametrize(
    ("header", "recognised"),
    [
        ("Image URL,Product-ID,Content Length", {"source": "Image URL", "id": "Product-ID", "size": "Content Length"}),
        ("name,url,key", {"source": "url", "key": "key"}),
        ("ImageUrl,MD5SUM,sha256,ETag", {"source": "ImageUrl", "md5": "MD5SUM", "sha256": "sha256", "etag": "ETag"}),
        ("src,LastModified,mimetype", {"source": "src", "last_modified": "LastModified", "content_type": "mimetype"}),
        ("href,destinationkey", {"source": "href", "key": "destinationkey"}),
        ("sku,url,id,updated_at,size,path", {"source": "url", "id": "id"}),
    ],
)
def test_usual_names(tmp_path: Path, header: str, recognised: dict[str, str]) -> None:
    """Columns are recognised by their usual names, without case, spaces, `_` and `-`."""
    path = put(tmp_path, "a.csv", header + "\n" + "1," * header.count(",") + "1\n")
    assert opened(path).recognised == recognised


def test_named_columns(tmp_path: Path) -> None:
    """A column that the job names has priority, and gets no other role."""
    path = put(tmp_path, "a.csv", f"url,sku,photo\n{URL},s,https://b/\n")
    manifest = opened(path, Columns(source="photo", id="url"))
    assert manifest.recognised == {"source": "photo", "id": "url"}


def test_bare_lists(tmp_path: Path) -> None:
    """Lines with `://` are sources, others IDs, in a .txt and in a .csv of one column without a header."""
    for name in ("a.txt", "a.csv", "a.txt.gz"):
        data = f"{URL}\n\n  \n4711\r\n".encode()
        path = put(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
        if name == "a.csv":
            path = put(tmp_path, name, f"{URL}\n\n4711\r\n")
        manifest = opened(path, url_template="https://h/{id}.jpg")
        assert column(manifest, "source") == [URL, None], name
        assert column(manifest, "id") == [None, "4711"], name
        assert row_numbers(manifest) == [1, 2]


def test_ids_with_template(tmp_path: Path) -> None:
    """A manifest of IDs needs no source column if source.url builds the address."""
    manifest = opened(put(tmp_path, "a.csv", "sku,shop\n1,x\n"), url_template="https://{shop}.example/{id}.jpg")
    assert manifest.recognised == {"id": "sku"}
    assert column(manifest, "shop") == ["x"]


def test_typed_cells(tmp_path: Path) -> None:
    """Numbers, dates and empty cells of typed formats become the text that a CSV would have."""
    pq.write_table(
        pa.table(
            {"url": [URL, None], "size": [12.0, None], "sku": [10**15, 2], "t": pa.array([0, None], pa.timestamp("s"))}
        ),
        tmp_path / "a.parquet",
    )
    manifest = opened(tmp_path / "a.parquet", needed=["t"])
    assert column(manifest, "size") == ["12", None]
    assert column(manifest, "id") == ["1000000000000000", "2"]
    assert column(manifest, "t") == ["1970-01-01 00:00:00.000", None]
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active["C4"], book.active["D4"], book.active["C6"], book.active["D6"] = "url", "sku", URL, 4711
    book.save(tmp_path / "a.xlsx")
    manifest = opened(tmp_path / "a.xlsx")
    assert column(manifest, "id") == ["4711"]
    assert [b.line_no for b in manifest.batches()] == [[6]]
    path = put(tmp_path, "a.jsonl", '{"url": "u", "size": 1e400, "sku": 1.50, "x": true}\n{"url": null}\n')
    manifest = opened(path, needed=["x"])
    assert (column(manifest, "id"), column(manifest, "size")) == (["1.50", None], ["1e400", None])
    assert column(manifest, "x") == ["true", None]
