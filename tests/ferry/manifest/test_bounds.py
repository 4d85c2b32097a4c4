"""Lists that want more than there is: refused with the bound and the file, before they take it."""

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
from ferry.manifest.columns import MAX_CELL, MAX_COLUMNS
from ferry.manifest.typed import at_most
from tests.ferry.manifest.test_open import URL, opened, put, refused

pytestmark = pytest.mark.matrix

WIDE = [f"c{n}" for n in range(MAX_COLUMNS + 1)]


def refused_quickly(path: Path, core_s: float = 30.0, **more: Any) -> str:
    """The message; a bomb that goes off would take minutes of a core."""
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
    """More columns than Excel has are refused, by their number."""
    assert "a." in (message := refused_quickly(put(tmp_path, name, content)))
    assert f"more than {MAX_COLUMNS:,} columns" in message


def test_long_names(tmp_path: Path) -> None:
    """What a thousand lines name as columns is kept: together no more than one line may have."""
    lines = [json.dumps({"url": URL, f"{n}😀{'x' * 500_000}": 1}, ensure_ascii=False) + "\n" for n in range(20)]
    path = put(tmp_path, "a.jsonl", "".join(lines))
    tracemalloc.start()
    try:
        assert "its first lines name columns of more than 1,048,576 characters" in refused_quickly(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_too_wide_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: pa.array([""]) for name in ["url", *WIDE]}), path)
    assert f"a.parquet has more than {MAX_COLUMNS:,} columns" in refused_quickly(path)


def test_many_names_given_twice(tmp_path: Path) -> None:
    """The name is found without comparing each with each."""
    names = ", ".join(f'"k{n}": 1' for n in range(60_000))
    line = f'{{"url": "{URL}", {names}, "k59999": 2}}\n'
    assert "`k59999` is given twice" in refused_quickly(put(tmp_path, "a.jsonl", f'{{"url": "{URL}"}}\n' + line))


def test_nothing_but_open_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line leaves a quote open up to the limit: to read all behind each of them once more would take days."""
    monkeypatch.setattr(manifest_csv, "MAX_AGAIN", 8 << 20)
    path = put(tmp_path, "a.csv", f"url,b,c\n{URL},1,2\n" + 'x",y,"\n' * 400_000)
    message = refused_quickly(path, bad_lines="skip")
    assert "a.csv, line " in message
    assert "8 million characters lie behind quotes that open and are not closed" in message
    assert "a quote opens and is not closed" in refused_quickly(path)


@pytest.mark.slow
def test_many_bad_lines_below_a_wide_header(tmp_path: Path) -> None:
    """A bad line takes the memory of a line, however many columns the header has."""
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
    """What unpacks to far more than any list does is given up, whatever it holds."""
    monkeypatch.setattr(manifest_text, "MAX_UNPACKED_BYTES", 1 << 20)
    pack: Any = {"gz": gzip.compress, "zst": partial(pa.compress, codec="zstd", asbytes=True)}[ending]
    for block in (b"\n" * (1 << 20), b'"' + b"x" * (1 << 20), b"x" * (1 << 20)):
        path = put(tmp_path, f"a.csv.{ending}", pack(f"url,b\n{URL},1\n".encode()) + pack(block) * 24)
        message = refused_quickly(path, bad_lines="skip")
        assert f"a.csv.{ending} unpacks to more than" in message
        assert "over 250 times its size" in message


def test_a_list_that_packs_well_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of one host and running numbers is no bomb."""
    monkeypatch.setattr(manifest_text, "MAX_UNPACKED_BYTES", 1 << 20)
    plain = "url\n" + "".join(f"https://img.shop.example/products/{n:09}/front.jpg\n" for n in range(100_000))
    for ending, packed in (
        ("gz", gzip.compress(plain.encode(), 9)),
        ("zst", pa.compress(plain.encode(), codec="zstd")),
    ):
        manifest = opened(put(tmp_path, f"a.csv.{ending}", bytes(packed)))
        assert sum(map(len, manifest.batches())) == 100_000


def parquet(path: Path, table: pa.Table, **how: Any) -> Path:
    pq.write_table(table, path, **how)
    return path


@pytest.mark.slow
def test_parquet_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long text that a million rows share, and one that packs to nothing: neither takes the memory it wants."""
    monkeypatch.setattr(typed, "MOST_BYTES", 1 << 30)
    shared = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1_000_000, pa.int32()), pa.array(["https://h/" + "x" * 900_000])
    )
    path = parquet(tmp_path / "a.parquet", pa.table({"url": shared}), compression="zstd", store_schema=False)
    assert path.stat().st_size < 1_000_000
    message = refused_quickly(path)
    assert "a.parquet takes more than 1 GiB of memory for the 8,192 rows after row 0" in message
    long = pa.table({"url": [URL, "https://h/" + "x" * (MAX_CELL + 1)]})
    path = parquet(tmp_path / "b.parquet", long, compression="zstd")
    assert path.stat().st_size < 10_000
    message = refused_quickly(path)
    assert f"b.parquet, row 2: `url` holds {MAX_CELL + 11:,} characters; {MAX_CELL:,} are read at most" in message


def test_one_row_group_of_everything(tmp_path: Path) -> None:
    """Row groups may be as large as they like: they are read a page at a time."""
    rows = [f"https://h/{n}.jpg" for n in range(300_000)]
    path = parquet(tmp_path / "a.parquet", pa.table({"url": rows}), row_group_size=300_000)
    with at_most(1 << 30):
        assert sum(map(len, opened(path).batches())) == 300_000


def nested(levels: int) -> bytes:
    """A Parquet file whose schema is a group in a group in a group; its footer is written by hand (Thrift compact)."""
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
    """A workbook with other XML in some of its parts."""
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
    """Two cells at opposite corners, one long text that all cells share, a part that unpacks a thousandfold."""
    monkeypatch.setattr(excel_process, "MOST_BYTES", 512 << 20)
    bombs = {
        "corners": workbook(sheet1=sheet_of(FAR)),
        "shared": workbook(sheet1=sheet_of(SHARED), sharedStrings=f"<sst {NS}><si><t>{'x' * 1_000_000}</t></si></sst>"),
        "blanks": _lying(workbook()),
    }
    for name, data in bombs.items():
        why = "larger than its declared" if name == "blanks" else "takes more than 512 MiB of memory"
        message = refused_quickly(put(tmp_path, f"{name}.xlsx", data))
        assert message.startswith(f"{name}.xlsx is damaged or no workbook: "), message
        assert why in message, message


def test_every_part_of_a_workbook_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sheet may lie anywhere in the archive; what all parts unpack to is bounded."""
    monkeypatch.setattr(excel_process, "_MOST_UNPACKED", 1 << 20)
    path = put(tmp_path, "elsewhere.xlsx", workbook())
    assert not any(isinstance(line, dict) for line in excel_process._read(str(path)))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other/sheet1.xml", b" " * (2 << 20))
    assert [line["error"] for line in excel_process._read(str(path))] == [
        "it unpacks to 0.0 GiB, and 1 GiB is read at most"
    ]


def _lying(book: bytes) -> bytes:
    """A part of 64 MiB whose entry in the archive says that it has ten bytes."""
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
    """The same hand-made parts, without a bomb in them."""
    rows = "".join(f'<row r="{n}"><c r="A{n}" t="s"><v>{min(n - 1, 1)}</v></c></row>' for n in range(1, 1001))
    strings = f"<sst {NS}><si><t>url</t></si><si><t>{URL}</t></si></sst>"
    path = put(tmp_path, "a.xlsx", workbook(sheet1=sheet_of(rows), sharedStrings=strings))
    assert sum(map(len, opened(path).batches())) == 999


def test_a_schema_without_a_bottom(tmp_path: Path) -> None:
    """Groups in groups in groups are refused before anybody goes down all of them."""
    assert "no column is recognised as the source; the columns are: `g`" in refused(
        put(tmp_path, "a.parquet", nested(5))
    )
    for levels in (1000, 200_000, 2_000_000):
        assert "a.parquet is damaged or no Parquet file" in refused_quickly(put(tmp_path, "a.parquet", nested(levels)))


def test_memory_is_bounded_and_given_back() -> None:
    """More than the bound is a MemoryError inside the block, and none after it."""
    with pytest.raises(MemoryError), at_most(64 << 20):
        bytearray(512 << 20)
    assert len(bytearray(512 << 20)) == 512 << 20
