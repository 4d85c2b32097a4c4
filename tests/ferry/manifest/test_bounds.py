"""Limits on manifests: one that needs too much is refused, with the limit and the file, before it takes it."""

from __future__ import annotations

import gzip
import io
import json
import struct
import time
import tracemalloc
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferry.manifest import csv as manifest_csv
from ferry.manifest import excel_process, typed
from ferry.manifest import text as manifest_text
from ferry.manifest.columns import MAX_CELL_CHARS, MAX_COLUMNS
from ferry.manifest.typed import limited_memory
from tests.ferry.manifest.test_open import URL, opened, put, refused

pytestmark = pytest.mark.matrix

WIDE = [f"c{n}" for n in range(MAX_COLUMNS + 1)]


def refused_quickly(path: Path, core_s: float = 30.0, **more: Any) -> str:
    """Returns the message. Without the limit, a bomb would take minutes of processor time."""
    before = time.process_time()
    message = refused(path, **more)
    assert time.process_time() - before < core_s
    return message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", ",".join(["url", *WIDE]) + "\n"),
        ("a.csv", "url" + "," * MAX_COLUMNS + "\n"),
        (
            "a.jsonl",
            "".join(json.dumps({f"c{m}": 1 for m in range(n, n + 1000)}) + "\n" for n in range(0, 17_000, 1000)),
        ),
    ],
)
def test_too_wide(name: str, content: str, tmp_path: Path) -> None:
    """More columns than Excel allows are refused."""
    assert "a." in (message := refused_quickly(put(tmp_path, name, content)))
    assert f"more than {MAX_COLUMNS:,} columns" in message


def test_long_names(tmp_path: Path) -> None:
    """The names of columns in the first thousand lines are limited in total, because all stay in memory."""
    lines = [json.dumps({"url": URL, f"{n}😀{'x' * 500_000}": 1}, ensure_ascii=False) + "\n" for n in range(20)]
    path = put(tmp_path, "a.jsonl", "".join(lines))
    tracemalloc.start()
    try:
        assert "the names of columns in its first lines have more than 1,048,576 characters" in refused_quickly(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_too_wide_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: pa.array([""]) for name in ["url", *WIDE]}), path)
    assert f"a.parquet has more than {MAX_COLUMNS:,} columns" in refused_quickly(path)


def test_many_names_given_twice(tmp_path: Path) -> None:
    """A duplicate name is found without comparing all names with each other."""
    names = ", ".join(f'"k{n}": 1' for n in range(60_000))
    line = f'{{"url": "{URL}", {names}, "k59999": 2}}\n'
    assert "`k59999` is given twice" in refused_quickly(put(tmp_path, "a.jsonl", f'{{"url": "{URL}"}}\n' + line))


def test_nothing_but_open_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line opens a quote up to the limit: reading the rest again for each of them would take days."""
    monkeypatch.setattr(manifest_csv, "MAX_REREAD_CHARS", 8 << 20)
    path = put(tmp_path, "a.csv", f"url,b,c\n{URL},1,2\n" + 'x",y,"\n' * 400_000)
    message = refused_quickly(path, bad_lines="skip")
    assert "a.csv, line " in message
    assert "8 million characters follow quotes that open and are not closed" in message
    assert "a quote opens and is not closed" in refused_quickly(path)


@pytest.mark.slow
def test_many_bad_lines_below_a_wide_header(tmp_path: Path) -> None:
    """A bad line takes the memory of a line, for any number of columns."""
    path = put(tmp_path, "a.csv", ",".join(["url", *WIDE[:-2]]) + "\n" + "x\n" * 50_000)
    manifest = opened(path, bad_lines="skip")
    tracemalloc.start()
    try:
        assert sum(len(batch.problems) for batch in manifest.batches()) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_packed_bombs(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that decompresses to far more than a manifest would is refused, whatever its content."""
    monkeypatch.setattr(manifest_text, "MAX_UNPACKED_BYTES", 1 << 20)
    pack: Any = {"gz": gzip.compress, "zst": partial(pa.compress, codec="zstd", asbytes=True)}[ending]
    for block in (b"\n" * (1 << 20), b'"' + b"x" * (1 << 20), b"x" * (1 << 20)):
        path = put(tmp_path, f"a.csv.{ending}", pack(f"url,b\n{URL},1\n".encode()) + pack(block) * 24)
        message = refused_quickly(path, bad_lines="skip")
        assert f"a.csv.{ending} decompresses to more than" in message
        assert "over 250 times its size" in message


def test_a_list_that_packs_well_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest of one host and running numbers is not refused as a bomb."""
    monkeypatch.setattr(manifest_text, "MAX_UNPACKED_BYTES", 1 << 20)
    plain = "url\n" + "".join(f"https://img.shop.example/products/{n:09}/front.jpg\n" for n in range(100_000))
    for ending, compressed in (
        ("gz", gzip.compress(plain.encode(), 9)),
        ("zst", pa.compress(plain.encode(), codec="zstd")),
    ):
        manifest = opened(put(tmp_path, f"a.csv.{ending}", bytes(compressed)))
        assert sum(map(len, manifest.batches())) == 100_000


def parquet(path: Path, table: pa.Table, **how: Any) -> Path:
    pq.write_table(table, path, **how)
    return path


@pytest.mark.slow
def test_parquet_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long text that a million rows share, and one that compresses to almost nothing: both are refused."""
    monkeypatch.setattr(typed, "MAX_BATCH_BYTES", 1 << 30)
    shared = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1_000_000, pa.int32()), pa.array(["https://h/" + "x" * 900_000])
    )
    path = parquet(tmp_path / "a.parquet", pa.table({"url": shared}), compression="zstd", store_schema=False)
    assert path.stat().st_size < 1_000_000
    message = refused_quickly(path)
    assert "a.parquet takes more than 1 GiB of memory for the 8,192 rows after row 0" in message
    long = pa.table({"url": [URL, "https://h/" + "x" * (MAX_CELL_CHARS + 1)]})
    path = parquet(tmp_path / "b.parquet", long, compression="zstd")
    assert path.stat().st_size < 10_000
    message = refused_quickly(path)
    assert f"b.parquet, row 2: `url` has {MAX_CELL_CHARS + 11:,} characters; the limit is {MAX_CELL_CHARS:,}" in message


def test_one_row_group_of_everything(tmp_path: Path) -> None:
    """Row groups may have any size, because they are read a page at a time."""
    rows = [f"https://h/{n}.jpg" for n in range(300_000)]
    path = parquet(tmp_path / "a.parquet", pa.table({"url": rows}), row_group_size=300_000)
    with limited_memory(1 << 30):
        assert sum(map(len, opened(path).batches())) == 300_000


def nested(levels: int) -> bytes:
    """Returns a Parquet file whose schema is nested groups. Its footer is written by hand (Thrift compact protocol)."""
    elements = [b"\x48\x06schema\x15\x02\x00"]
    for _ in range(levels):
        elements.append(b"\x35\x02\x18\x01g\x15\x02\x00")  # repetition_type: optional, name: g, num_children: 1
    elements.append(b"\x15\x0c\x25\x02\x18\x01v\x00")  # type: byte array, optional, name: v
    count = len(elements)
    size = bytes([0xFC]) + _varint(count)
    footer = b"\x15\x02" + b"\x19" + size + b"".join(elements) + b"\x16\x00" + b"\x19\x0c" + b"\x00"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def workbook(**parts: str) -> bytes:
    """Returns a workbook with other XML in some of its parts."""
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["url", "sku"])
    book.active.append([URL, "1"])
    plain, out = io.BytesIO(), io.BytesIO()
    book.save(plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            short = name.rpartition("/")[2].partition(".")[0]
            new.writestr(name, parts.get(short, old.read(name).decode()))
        if "sharedStrings" in parts:
            new.writestr("xl/sharedStrings.xml", parts["sharedStrings"])
    return out.getvalue()


NS = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def sheet_of(cells: str) -> str:
    return f'<?xml version="1.0"?><worksheet {NS}><sheetData>{cells}</sheetData></worksheet>'


FAR = (
    '<row r="1"><c r="A1" t="inlineStr"><is><t>url</t></is></c></row>'
    '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
)
SHARED = "".join(f'<row r="{n}"><c r="A{n}" t="s"><v>0</v></c></row>' for n in range(1, 20_001))


@pytest.mark.slow
def test_workbook_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells at opposite corners, one long text that all cells share, a part that decompresses a thousandfold."""
    monkeypatch.setattr(excel_process, "MAX_BYTES", 512 << 20)
    bombs = {
        "corners": workbook(sheet1=sheet_of(FAR)),
        "shared": workbook(sheet1=sheet_of(SHARED), sharedStrings=f"<sst {NS}><si><t>{'x' * 1_000_000}</t></si></sst>"),
        "blanks": _lying(workbook()),
    }
    for name, data in bombs.items():
        why = "larger than its declared" if name == "blanks" else "takes more than 512 MiB of memory"
        message = refused_quickly(put(tmp_path, f"{name}.xlsx", data))
        assert message.startswith(f"{name}.xlsx is damaged or not a workbook: "), message
        assert why in message, message


def test_every_part_of_a_workbook_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sheet may be anywhere in the archive, so the limit is on the sizes of all parts together."""
    monkeypatch.setattr(excel_process, "_MAX_XML_BYTES", 1 << 20)
    path = put(tmp_path, "elsewhere.xlsx", workbook())
    assert not any(isinstance(line, dict) for line in excel_process._read(str(path)))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other/sheet1.xml", b" " * (2 << 20))
    assert [line["error"] for line in excel_process._read(str(path))] == [
        "it decompresses to 0.0 GiB; the limit is 1 GiB"
    ]


def _lying(book: bytes) -> bytes:
    """Returns a workbook with a part of 64 MiB whose entry in the archive says ten bytes."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = squeeze.compress(sheet_of("").removesuffix("</sheetData></worksheet>").encode())
    block = b" " * (16 << 20)
    for _ in range(4):
        body += squeeze.compress(block)
    body += squeeze.flush()
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(book)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            if "sheet1" not in name:
                new.writestr(name, old.read(name))
        new.writestr("xl/worksheets/sheet1.xml", body)  # stored: the sizes and the method are changed below
    data = bytearray(out.getvalue())
    for mark, method_at, size_at in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):
        at = data.rfind(
            mark,
            0,
            data.rfind(b"xl/worksheets/sheet1.xml")
            if mark == b"PK\x01\x02"
            else data.find(b"xl/worksheets/sheet1.xml"),
        )
        struct.pack_into("<H", data, at + method_at, 8)
        struct.pack_into("<I", data, at + size_at, 10)
    return bytes(data)


def test_a_workbook_that_is_fine_is_read(tmp_path: Path) -> None:
    """The same handmade parts without a bomb are read."""
    rows = "".join(f'<row r="{n}"><c r="A{n}" t="s"><v>{min(n - 1, 1)}</v></c></row>' for n in range(1, 1001))
    strings = f"<sst {NS}><si><t>url</t></si><si><t>{URL}</t></si></sst>"
    path = put(tmp_path, "a.xlsx", workbook(sheet1=sheet_of(rows), sharedStrings=strings))
    assert sum(map(len, opened(path).batches())) == 999


def test_a_schema_without_a_bottom(tmp_path: Path) -> None:
    """Deeply nested groups are refused before any code recurses into all of them."""
    assert "no column is recognised as the source; the columns are: `g`" in refused(
        put(tmp_path, "a.parquet", nested(5))
    )
    for levels in (1000, 200_000, 2_000_000):
        assert "a.parquet is damaged or not a Parquet file" in refused_quickly(
            put(tmp_path, "a.parquet", nested(levels))
        )


def test_memory_is_bounded_and_given_back() -> None:
    """More than the limit is a MemoryError inside the block, and not after it."""
    with pytest.raises(MemoryError), limited_memory(64 << 20):
        bytearray(512 << 20)
    assert len(bytearray(512 << 20)) == 512 << 20
