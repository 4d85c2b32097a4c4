# ruff: noqa: E501  (tables of messages)
"""Unusable manifests and lines: the message names the line and what to do."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferry.core.errors import UserError
from ferry.job.columns import Columns
from ferry.manifest.open import open_manifest
from tests.ferry.manifest.test_open import URL, column, opened, problems, put, refused, row_numbers

pytestmark = pytest.mark.matrix

GOOD = f"{URL},1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "\n \n", "a.csv is empty"),
        ("a.csv", "url,sku\n", "a.csv contains no rows; nothing would be transferred"),
        ("a.txt", "\n\n", "a.txt contains no rows"),
        ("a.jsonl", "\n", "a.jsonl is empty"),
        ("a.csv", "foo,bar\n1,2\n", "no column is recognised as the source; the columns are: `foo`, `bar`; name it with `columns: {source: ...}`"),
        ("a.csv", "sku,title\n1,2\n", "or build addresses from IDs with `source: {url: 'https://.../{id}.jpg'}`"),
        ("a.csv", "name,key\n1,2\n", "no column is recognised as the source"),
        ("a.csv", "foo\n1\n", "no column is recognised as the source; the columns are: `foo`"),
        ("a.csv", f"{URL},x\n", "has no header row: its first line is `https://a.example/x.jpg, x`, split at each comma"),
        ("a.csv", f"url,Image_URL\n{GOOD}", "`url` and `Image_URL` could each be the source; choose one with `columns: {source: url}`"),
        ("a.jsonl", f'{{"url": "{URL}"}}\n{{"url": "{URL}", "url": "b"}}\n', "line 2: `url` is given twice"),
        ("a.csv", f"url,sku,sku\n{GOOD}", "has more than one column named `sku`"),
        ("a.csv", b"url,sku\nhttps://a/,\xe4\n", "a.csv is not UTF-8: line 2 contains the byte 0xe4 after `https://a/,`; convert it: `iconv -f windows-1252"),
        ("a.csv", "url,sku\n".encode("utf-16le"), "is UTF-16 without a byte order mark; convert it: `iconv -f utf-16le"),
        ("a.csv", b"\xff\xfeu\x00\x00\xd8", "begins as UTF-16 and is invalid near line 1"),
        ("a.csv", f'url,sku\n{GOOD}"{URL},2\n{GOOD}', "a.csv, line 3: a quote opens and is not closed: `\"https://a.example/x.jpg,2`"),
        ("a.csv", f'url,sku\n{GOOD}"x"y,2\n', "line 3: text follows a closing quote"),
        ("a.csv", f"url,sku\n{GOOD}{URL}?sig=SECRET,2,3\n", "line 3: 3 fields where the header has 2: `https://a.example/x.jpg…`"),
        ("a.csv", f"url,sku\n{GOOD}https://me:PW@a.example/\x1b,\t,\n", "line 3: 3 fields where the header has 2: `https://a.example/\\x1b,\\t,`"),
        ("a.csv", f"url,sku\n{URL}\n", "line 2: 1 field where the header has 2"),
        ("a.csv", f"url,sku\r{URL},1\r", "a bare carriage return"),
        ("a.csv", 'url,"sku\n', "a.csv, line 1, its header: a quote opens and is not closed"),
        ("a.csv", gzip.compress(b"url\n", mtime=0), "a.csv ends in .csv, but is gzip; name it .gz (list.csv.gz)"),
        ("a.csv", pa.compress(b"url\n", codec="zstd", asbytes=True), "but is zstd; name it .zst"),
        ("a.csv", "<!DOCTYPE html><html>", "but is an HTML page; probably an error page was saved in its place; download it again"),
        ("a.jsonl", "  <?xml version='1.0'?><Error/>", "but is an XML document; probably"),
        ("a.csv", b"PK\x03\x04....", "but is a zip archive or an Excel workbook; name it .xlsx"),
        ("a.csv", b"PAR1....", "but is Parquet; name it .parquet"),
        ("a.csv", '{"url": 1}', "but is JSON; write one object per line and name it .jsonl"),
        ("a.csv", b"url\nabcdefghi\0", "but is binary"),
        ("a.txt", b"\xff\xd8\xff\xe0", "but is a JPEG image"),
        ("a.xlsx", "url\n", "a.xlsx ends in .xlsx, but is plain text; name it .csv, .tsv, .txt or .jsonl"),
        ("a.xlsx", b"PK\x03\x04....", "a.xlsx is damaged or not a workbook"),
        ("a.parquet", "url\n", "a.parquet ends in .parquet, but is plain text"),
        ("a.parquet", b"PAR1.....PAR1", "is damaged or not a Parquet file"),
        ("a.csv.gz", "url\n", "a.csv.gz is not gzip but plain text; remove .gz from its name"),
        ("a.csv.gz", gzip.compress(b"url\n" + b"x" * 99, mtime=0)[:-9], "cannot be decompressed after 0 bytes: it is truncated"),
        ("a.csv.gz", gzip.compress(b"<html>", mtime=0), "but is an HTML page"),
        ("a.csv.zst", pa.compress(b"url\n" * 99, codec="zstd", asbytes=True)[:-9], "it is truncated"),
        ("a.parquet.gz", "x", "is compressed already; decompress the .gz first"),
        ("a.json", "[]", "a .json file is one document; write one object per line and name it .jsonl"),
        ("a.xls", "x", "save it as .xlsx"),
        ("a.cvs", "x", "the extension .cvs is unknown; did you mean .csv?; known are csv, tsv, txt, jsonl"),
        ("list", "x", "the name has no extension, which gives the format"),
        ("a.txt", "4711\n", "its first line, `4711`, is not a URL; if these are IDs, set `source.url`"),
        ("a.txt", f"Image URL\n{URL}\n", "if that is a header, name the file .csv"),
        ("a.jsonl", '{"url": "u"}\n[1]\n', "a.jsonl, line 2: an array where an object is expected: `[1]`"),
        ("a.jsonl", '{"url": "u"}\n\n{"url": "u\n', "line 3: not JSON (Unterminated string"),
        ("a.jsonl", '{"url": "u", "md5": NaN}\n{"url": "u"}\n', "line 1: NaN is not JSON"),
        ("a.jsonl", '{"url": {"href": "u"}}\n', "line 1: `url` contains an object, not text or a number"),
        ("a.jsonl", '{"url": "\\ud800"}\n', "line 1: an unpaired surrogate"),
        ("a.jsonl", '{"url": "u", "sku": ' + "[" * 100_000 + "}\n" + '{"url": "u"}\n', "line 1: JSON nested too deeply"),
        ("a.jsonl", "1\n2\n", "contains no JSON objects; its first line: a bare value where an object is expected: `1`"),
        ("a.jsonl", '{"a": 1}\n', "no column is recognised as the source in its first 1,000 lines; the columns are: `a`"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    """An unusable manifest is a UserError that names the line and what to do, and no secret."""
    found = refused(put(tmp_path, name, content))
    assert message in found
    assert "SECRET" not in found
    assert "PW" not in found


@pytest.mark.parametrize(
    ("columns", "needed", "template", "message"),
    [
        (Columns(source="ulr"), (), None, "has no column `ulr`, which `columns: {source: ulr}` names; the columns are `url`, `sku`; did you mean `url`?"),
        (Columns(), ("skuu",), None, "the key template names {skuu}, and a.csv has no such column; the columns are `url`, `sku`; did you mean {sku}?"),
        (Columns(), (), "https://h/{idd}", "source.url names {idd}, and a.csv has no such column"),
        (Columns(), (), "https://h/", "source.url `https://h/` names no column; write {id} where the ID goes"),
    ],
)  # fmt: skip
def test_missing_columns(
    tmp_path: Path, columns: Columns, needed: tuple[str, ...], template: str | None, message: str
) -> None:
    """A missing column that the job or a template names is an error that suggests the nearest name."""
    path = put(tmp_path, "a.csv", "url,sku\n" + GOOD)
    assert message in refused(path, columns, needed=needed, url_template=template)


def test_directory_and_missing(tmp_path: Path) -> None:
    """A directory needs a file:// URL; a missing manifest is named."""
    assert f"write `manifest: file://{tmp_path}/`" in refused(tmp_path)
    assert "a.csv does not exist" in refused(tmp_path / "a.csv")


def test_parquet_columns(tmp_path: Path) -> None:
    """Nested and binary columns are refused if they are needed, and ignored otherwise."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": [URL], "md5": pa.array([b"1"]), "x": pa.array([[1]])}), path)
    assert "column `md5` is binary; write it as text" in refused(path)
    pq.write_table(pa.table({"url": [URL], "x": pa.array([[1]])}), path)
    assert "column `x` is nested (list<" in refused(path, needed=["x"])
    assert column(opened(path), "source") == [URL]
    pq.write_table(pa.table({"url": pa.array([], pa.string())}), path)
    assert "contains no rows" in refused(path)


def test_xlsx_empty(tmp_path: Path) -> None:
    """A workbook whose first sheet is empty or has no header is refused."""
    book = openpyxl.Workbook()
    book.save(tmp_path / "a.xlsx")
    assert "the first sheet is empty" in refused(tmp_path / "a.xlsx")
    assert book.active is not None
    book.active["A1"] = URL
    book.save(tmp_path / "a.xlsx")
    assert "has no header row" in refused(tmp_path / "a.xlsx")


def test_xlsx_of_two_sheets(tmp_path: Path) -> None:
    """A second sheet with the same columns is refused; notes, charts, hidden and empty sheets are ignored."""
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["url", "sku"])
    book.active.append([URL, "1"])
    book.create_sheet("empty")
    book.create_sheet("notes").append(["what", "why"])
    hidden = book.create_sheet("old")
    hidden.append(["url", "sku"])
    hidden.sheet_state = "hidden"
    book.create_chartsheet("sales")
    book.save(tmp_path / "a.xlsx")
    assert column(opened(tmp_path / "a.xlsx"), "source") == [URL]
    more = book.create_sheet("2024")
    more.append([])
    more.append(["URL ", "SKU"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match=r"the sheet `2024` has the columns of the first one"):
        column(opened(tmp_path / "a.xlsx"), "source")


def test_a_name_that_comes_late(tmp_path: Path) -> None:
    """A digest or a key that only later JSON lines have is refused; other new names and null values are ignored."""
    lines = ['{"url": "https://a/x.jpg"}'] * 1000
    path = put(tmp_path, "a.jsonl", "\n".join([*lines, '{"url": "https://a/y.jpg", "colour": "red", "md5": null}']))
    assert len(column(opened(path), "source")) == 1001
    for name, role in (("SHA-256", "sha256"), ("key", "key"), ("content_length", "size")):
        put(tmp_path, "a.jsonl", "\n".join([*lines, json.dumps({"url": "https://a/y.jpg", name: "1"})]))
        with pytest.raises(UserError, match=rf"line 1001: `{name}` would be the {role}"):
            column(opened(path), "source")
    put(tmp_path, "a.jsonl", "\n".join([*lines[:999], '{"url": "https://a/y.jpg", "key": "k"}']))
    assert column(opened(path), "key")[-1] == "k"


def test_name_is_redacted(tmp_path: Path) -> None:
    """The path of a signed URL gives the format, and the signature is in no message."""
    path = put(tmp_path, "spool", "a,b\n1,2\n")
    with pytest.raises(UserError) as caught:
        open_manifest(path, "https://h.example/list.csv?sig=SECRET", Columns())
    assert "https://h.example/list.csv" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def big(rows: int, stray_at: int, stray: str, row: str) -> str:
    return "url,sku\n" + "".join((stray if n == stray_at else row.format(n=n)) + "\n" for n in range(1, rows + 1))


@pytest.mark.parametrize("row", ["https://h/{n}.jpg,{n}", '"https://h/{n}.jpg","{n}"'])
@pytest.mark.parametrize("stray", ['"https://h/x.jpg,40000', 'https://h/x.jpg,"40000'])
def test_stray_quote(tmp_path: Path, row: str, stray: str) -> None:
    """A stray quote in row 40,000 of 100,000 is reported at its own line, not at the end of the file."""
    path = put(tmp_path, "a.csv", big(100_000, 40_000, stray, row))
    assert "a.csv, line 40001: " in refused(path)
    manifest = opened(path, bad_lines="skip")
    found = problems(manifest)
    assert list(found) == [40_000]
    assert found[40_000].startswith("line 40001: ")
    assert row_numbers(manifest) == list(range(1, 100_001))
    ids = column(manifest, "id")
    assert (ids[39_998], ids[39_999], ids[40_000], ids[-1]) == ("39999", None, "40001", "100000")


def test_carriage_return_inside_record(tmp_path: Path) -> None:
    """In a record of several lines, the message shows the line with the bare carriage return."""
    path = put(tmp_path, "a.csv", f'url,t,u\n{URL},"one\ntwo",th\rree\n{URL},4,5\n')
    message = refused(path, needed=["t"])
    assert (
        "line 3: a bare carriage return (convert the line endings: `tr '\\r' '\\n' < OLD > NEW`): `two\",th" in message
    )


def test_padded_gzip(tmp_path: Path) -> None:
    """Zeros after a gzip member are padding, and a second member is read."""
    compressed = gzip.compress(f"url\n{URL}\n".encode()) + gzip.compress(f"{URL}\n".encode()) + bytes(512)
    assert column(opened(put(tmp_path, "a.csv.gz", compressed)), "source") == [URL, URL]


def test_blank_start_of_a_long_line(tmp_path: Path) -> None:
    """A line over the limit that begins with spaces is a bad line, not a blank one."""
    for name, head in (("a.csv", f"url\n{URL}\n"), ("a.txt", URL + "\n"), ("a.jsonl", f'{{"url": "{URL}"}}\n')):
        manifest = opened(put(tmp_path, name, head + " " * 2_000_000), bad_lines="skip")
        assert list(problems(manifest)) == [2], name


def test_quote_inside_record(tmp_path: Path) -> None:
    """In a record of several lines, the message names the line where the bad quote opens."""
    path = put(tmp_path, "a.csv", f'url,t,u\n{URL},"one\ntwo","three\n{URL},4,5\n')
    assert "line 3: a quote opens and is not closed" in refused(path, needed=["t"])


def test_long_lines(tmp_path: Path) -> None:
    """A line of 10 MB is one bad line in each text format; the lines around it are read."""
    long = "x" * 10_000_000
    for name, head, good in (("a.csv", "url\n", URL), ("a.txt", "", URL), ("a.jsonl", "", f'{{"url": "{URL}"}}')):
        path = put(tmp_path, name, f"{head}{good}\n{long}\n{good}\n{long}")
        line = 3 if head else 2
        assert f"line {line}: longer than 1 MiB: `xxxx" in refused(path)
        manifest = opened(path, bad_lines="skip")
        assert column(manifest, "source") == [URL, None, URL, None]
        assert list(problems(manifest)) == [2, 4]
        assert row_numbers(manifest) == [1, 2, 3, 4]


@pytest.mark.slow
def test_bounded_memory(tmp_path: Path) -> None:
    """One line of 300 MB, compressed to a few kB, does not take that much memory."""
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(b"url\nhttps://h/\n")
        for _ in range(300):
            file.write(b"x" * 1_000_000)
    code = (
        "import sys; from pathlib import Path; from ferry.manifest.open import open_manifest\n"
        "from tests.support.memory import forget_peak, peak_bytes\n"
        "from ferry.job.model import Columns\n"
        "from ferry.manifest import text; text.MAX_UNPACKED_BYTES = 1 << 30\n"
        "before = forget_peak()\n"
        "print(sum(map(len, open_manifest(Path(sys.argv[1]), 'a.csv.gz', Columns(), bad_lines='skip').batches())))\n"
        "print((peak_bytes() - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.csv.gz")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
    )
    rows, grown_kib = map(int, done.stdout.split())
    assert rows == 2
    assert grown_kib < 40_000


def test_bad_lines_skip(tmp_path: Path) -> None:
    """With `bad_lines: skip`, each bad line is a row with its reason, and is counted as a row."""
    path = put(tmp_path, "a.csv", f'url,sku\n{GOOD}a,b,c\n"x"y,2\n{GOOD}"open,3\n')
    manifest = opened(path, bad_lines="skip")
    assert row_numbers(manifest) == [1, 2, 3, 4, 5]
    assert column(manifest, "source") == [URL, None, None, URL, None]
    assert {row: why.partition(":")[0] for row, why in problems(manifest).items()} == {
        2: "line 3",
        3: "line 4",
        5: "line 6",
    }
    path = put(tmp_path, "a.jsonl", '{"url": "u"}\n[]\n{"url": ["u"]}\n{"url": "v"}\n')
    manifest = opened(path, bad_lines="skip")
    assert column(manifest, "source") == ["u", None, None, "v"]
    assert list(problems(manifest)) == [2, 3]
