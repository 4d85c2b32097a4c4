# ruff: noqa: E501  (tables of messages)
"""Normalised rows: source, key, digests, IDs, and the problem of each unusable row."""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.core.errors import UserError
from ferry.job.columns import Columns
from ferry.job.templates import Template
from ferry.manifest.addresses import Addresses
from ferry.manifest.columns import Batch, more_source
from ferry.manifest.normalize import (
    _WITHOUT_IDS,
    ROW_GROUP,
    SCHEMA,
    Normaliser,
    base_row_id,
    find_duplicates,
    normalise,
    read_digest,
    read_size,
    row_id,
    with_ids,
)
from ferry.manifest.open import open_manifest
from ferry.manifest.sources import SIGNED, is_bare_address, key_or_problem

URL = "https://a.example/x/y.jpg"


def rows_of(
    folder: Path,
    values: dict[str, list[str | None]],
    *,
    url: str | None = None,
    key: str | None = None,
    roots: Sequence[str] = (),
    prefix: str = "",
    for_directory: bool = False,
    problems: dict[int, str] | None = None,
    bare_hosts: bool = False,
) -> list[dict[str, Any]]:
    count = len(next(iter(values.values())))
    batch = Batch(range(1, count + 1), range(2, count + 2), values, problems or {})
    result = normalise(
        duckdb.connect(),
        [batch],
        url_template=None if url is None else Template.parse_url(url),
        key_template=None if key is None else Template.parse(key),
        roots=roots,
        prefix=prefix,
        for_directory=for_directory,
        bare_hosts=bare_hosts,
        out_path=folder / "rows.parquet",
    )
    assert result.rows == count
    rows: list[dict[str, Any]] = pq.read_table(result.path).to_pylist()
    assert result.problems.keys() == {row["error_class"] for row in rows} - {None}
    return rows


def row_of(folder: Path, **values: str | None) -> dict[str, Any]:
    return rows_of(folder, {"source": [URL], **{name: [value] for name, value in values.items()}})[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "the row in line 2 has no URL"),
        ("   ", "the row in line 2 has no URL"),
        ("x/y.jpg", "the source is not a URL; write https://..., or set `source.url` if it is an ID"),
        ("ftp://h/x", "the source has the scheme `ftp`; Ferry downloads only http and https URLs"),
        ("data:x://", "the source is not a URL; Ferry downloads only http and https URLs"),
        ("s3://b/x", "`s3` sources are read only under a root: set `source.roots`"),
        ("file:///etc/passwd", "`file` sources are read only under a root: set `source.roots`"),
        ("https:///x", "the URL has no host"),
        ("https://:80/x", "the URL has no host"),
        ("https://?x", "the URL has no host"),
        ("https://h:0/x", "the URL's port is not a number from 1 to 65535"),
        ("https://h:65536/x", "the URL's port is not a number from 1 to 65535"),
        ("https://h:/x", "the URL's port is not a number from 1 to 65535"),
        ("https://h:x/x", "the URL's port is not a number from 1 to 65535"),
        (
            "https://h/a.jpg, https://h/b.jpg",
            "the cell contains several URLs; set `columns: {split: ...}` to what separates them, or keep one",
        ),
        (
            "https://h/a.jpg http://h/b.jpg",
            "the cell contains several URLs; set `columns: {split: ...}` to what separates them, or keep one",
        ),
        ("https://my host/x", "the URL's host cannot be read"),
        ("//h/x", "the source is not a URL; write https://..., or set `source.url` if it is an ID"),
        ("cdn.example/x.jpg", "the source is not a URL; write https://..., or set `source.url` if it is an ID"),
        ("https://h/a\tb", "the URL contains a control character (0x09)"),
        ("https://h/a\nb", "the URL contains a line break; check the manifest for a missing quote"),
        ("https://me:pw@h/x", "the URL contains a user name or password; use `source.headers` with a reference"),
        ("https://me@h/x", "the URL contains a user name or password; use `source.headers` with a reference"),
        ("https://h\\a/x", "the URL's host cannot be read"),
        ("https://h..a/x", "the URL's host cannot be read"),
        ("https://h%41/x", "the URL's host cannot be read"),
        ("https://[::1/x", "the URL's host cannot be read"),
        ("https://[zz]/x", "the URL's host cannot be read"),
    ],
)
def test_bad_url(tmp_path: Path, source: str | None, message: str) -> None:
    """A row with an unusable source stays, as bad_url, with the reason."""
    row = rows_of(tmp_path, {"source": [source]})[0]
    assert (row["error_class"], row["message"], row["key"]) == ("bad_url", message, None)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (URL, "x/y.jpg"),
        (f"  {URL}\t", "x/y.jpg"),
        ("HTTPS://A.example/X.jpg", "X.jpg"),
        ("http://h.example:8080/a%20b", "a b"),
        ("https://[2001:db8::1]:443/x", "x"),
        ("https://bücher.example/ä b".replace(" ", "%20"), "ä b"),
        ("https://h/x@y.jpg?u=a@b", "x@y.jpg"),
        ("https://h/x/é.jpg?a=ü#f", "x/é.jpg"),
        ("https://h//x.jpg", "x.jpg"),
    ],
)
def test_good_url(tmp_path: Path, source: str, key: str) -> None:
    """The source stays byte for byte, except white space around it; its path is the key."""
    row = rows_of(tmp_path, {"source": [source]})[0]
    assert (row["source"], row["key"], row["error_class"]) == (source.strip(), key, None)


@pytest.mark.parametrize(
    ("source", "bare", "completed", "key"),
    [
        ("//cdn.example/x/y.jpg", False, "https://cdn.example/x/y.jpg", "x/y.jpg"),
        (" //cdn.example:8443/y.jpg?v=1", False, "https://cdn.example:8443/y.jpg?v=1", "y.jpg"),
        ("cdn.old.example/y.jpg", True, "https://cdn.old.example/y.jpg", "y.jpg"),
        ("cdn.old.example/my photo.jpg", True, "https://cdn.old.example/my%20photo.jpg", "my photo.jpg"),
        ("HTTP://h/my photo 1.jpg?a=b c", False, "HTTP://h/my%20photo%201.jpg?a=b%20c", "my photo 1.jpg"),
        ("https://h/a%20b c.jpg", False, "https://h/a%20b%20c.jpg", "a b c.jpg"),
    ],
)
def test_an_address_that_is_completed(tmp_path: Path, source: str, bare: bool, completed: str, key: str) -> None:
    """Web addresses as lists really have them get their scheme and %20."""
    row = rows_of(tmp_path, {"source": [source]}, bare_hosts=bare)[0]
    assert (row["source"], row["key"], row["error_class"]) == (completed, key, None)


def test_completed_addresses_are_counted(tmp_path: Path) -> None:
    """The plan says how many there are."""
    addresses = Addresses(None, ["s3://b/"], bare_hosts=True)
    normaliser = Normaliser(addresses=addresses, key_template=None, prefix="", for_directory=False)
    sources = ["h.example/a b", "h.example/c", "https://h/d e", "https://h/f", "s3://b/g h", "i j", "//h.example/k"]
    normaliser.columns(Batch(range(1, 8), None, {"source": sources}))
    assert addresses.repairs == {"schemes": 3, "blanks": 2}


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        ("cdn.old.example/shoes/1.jpg", True),
        (" old.example:8443/1.jpg ", True),
        ("cdn.old.example", False),
        ("shoes/1.jpg", False),
        ("1.jpg", False),
        ("a.b.jpg/", False),
        ("127.0.0.1/1.jpg", False),  # a version number, a path: no name of a host
        ("//cdn.old.example/1.jpg", False),
        ("https://cdn.old.example/1.jpg", False),
    ],
)
def test_addresses_without_a_scheme(text: str, is_so: bool) -> None:
    """The table of is_bare_address."""
    assert is_bare_address(text) is is_so


@pytest.mark.parametrize(
    ("source", "key", "message"),
    [
        ("s3://old/images/a b?#%20.jpg ", "a b?#%20.jpg ", None),
        ("s3://old/images/deep/c.jpg", "c.jpg", None),
        ("file:///srv/images/x.jpg", "x.jpg", None),
        ("s3://old/other/x.jpg", None, "the source is under none of the roots (`file:///srv/images/`, `s3://old/images/`, `s3://old/images/deep/`)"),
        ("s3://old/images2/x.jpg", None, "the source is under none of the roots (`file:///srv/images/`, `s3://old/images/`, `s3://old/images/deep/`)"),
        ("file:///srv/images/../../etc/passwd", None, "the source contains `.` or `..`, which could leave its root"),
        ("s3://old/images/", None, "the source is a root itself, not an object"),
        ("s3://old/images/a.jpg/", "a.jpg/", "the key ends in `/`, so it names no object; set `key`, or give the row another one"),
        ("file:///srv/images/a.jpg/", None, "the source ends in `/`, so it is not a file"),
    ],
)  # fmt: skip
def test_roots(tmp_path: Path, source: str, key: str | None, message: str | None) -> None:
    """s3:// and file:// sources are literal and must be under a root; the rest after the root is the key."""
    roots = ["s3://old/images", "s3://old/images/deep/", "file:///srv/images/"]
    row = rows_of(tmp_path, {"source": [source]}, roots=roots)[0]
    assert (row["key"], row["message"]) == (key, message)


@pytest.mark.parametrize(
    ("source", "key", "message"),
    [
        ("gs://old/a?b#c%2F/x.jpg ", "a?b#c%2F/x.jpg ", None),
        ("\t gs://old/a b.jpg \n", "a b.jpg ", None),
        ("gs://old//x.jpg", "x.jpg", None),
        ("gs://old/a//x.jpg", "a//x.jpg", "the key holds `//`, an empty path segment; set `key`, or give the row another one"),
        ("az://shop/$web/p/x.jpg", "x.jpg", None),
        ("az://shop/$web/p", None, "the source is under none of the roots (`az://shop/$web/p/`, `gs://old/`)"),
        ("az://shop/other/p/x.jpg", None, "the source is under none of the roots (`az://shop/$web/p/`, `gs://old/`)"),
        ("az://other/$web/p/x.jpg", None, "the source is under none of the roots (`az://shop/$web/p/`, `gs://old/`)"),
        ("GS://old/x.jpg", None, "the source is under none of the roots (`az://shop/$web/p/`, `gs://old/`)"),
        ("gs:/old/x.jpg", None, "the source is not a URL; write https://..., or set `source.url` if it is an ID"),
        ("gcs://old/x.jpg", None, "the source has the scheme `gcs`; Ferry downloads only http and https URLs"),
    ],
)  # fmt: skip
def test_roots_at_google_and_azure(tmp_path: Path, source: str, key: str | None, message: str | None) -> None:
    """Their sources are literal, too: what a URL would give a meaning is a part of the key."""
    row = rows_of(tmp_path, {"source": [source]}, roots=["gs://old/", "az://shop/$web/p"])[0]
    assert (row["key"], row["message"]) == (key, message)


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("az://shop/old/x.jpg?sv=2024-11-04&sp=r&sig=canary%3D", True),
        ("az://shop/old/x.jpg?sig=canary", True),
        ("s3://old/x.jpg?X-Amz-Date=20261201T000000Z&X-Amz-Signature=canary", True),
        ("gs://old/x.jpg?X-Goog-Signature=canary", True),
        ("az://shop/old/x.jpg?size=2&design=1", False),
        ("file:///srv/x.jpg?sig=1", False),
    ],
)
@pytest.mark.parametrize("template", [None, "{source.path}", "{id}.jpg"])
def test_a_signature_becomes_no_key(tmp_path: Path, template: str | None, source: str, refused: bool) -> None:
    """A SAS or a presigned query on the address of a bucket's object is refused: keys are shown to all."""
    roots = ["az://shop/old/", "s3://old/", "gs://old/", "file:///srv/"]
    (row,) = rows_of(tmp_path, {"source": [source], "id": ["7"]}, roots=roots, key=template)
    assert (row["error_class"], row["message"]) == (("bad_url", SIGNED) if refused else (None, None))
    assert "canary" not in (row["key"] or "")
    assert key_or_problem(source, roots, as_listed=True)[1] is None, "a blob of a listing has this name"


def test_sources_at_google_without_a_root(tmp_path: Path) -> None:
    """A row alone does not decide which bucket is read."""
    row = rows_of(tmp_path, {"source": ["az://shop/old/x.jpg"]})[0]
    assert row["message"] == "`az` sources are read only under a root: set `source.roots`"


def test_key_order(tmp_path: Path) -> None:
    """A template has priority over the row's key column, and that over the path of the URL."""
    values: dict[str, list[str | None]] = {"source": [URL, URL], "key": ["//k/1.jpg", None], "id": ["1", "2"]}
    assert [row["key"] for row in rows_of(tmp_path, values)] == ["k/1.jpg", "x/y.jpg"]
    templated = rows_of(
        tmp_path, values, key="/{id}/{source.host}/{source.stem}.{source.ext}/{source.path}/{source.name}"
    )
    assert templated[0]["key"] == "1/a.example/y.jpg/x/y.jpg/y.jpg"


def test_late_keys(tmp_path: Path) -> None:
    """A deferred key keeps its deferred fields; its other braces are doubled."""
    row = rows_of(tmp_path, {"source": [URL], "id": ["{1}"]}, key="{id}/{sha256}.{ext}")[0]
    assert (row["key"], row["deferred_key"], row["error_class"]) == ("{{1}}/{sha256}.{ext}", True, None)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"key": ["a/../b"]}, {}, "the key holds `.` or `..` as a path segment; set `key`, or give the row another one"),
        ({"key": ["/"]}, {}, "the key is empty; set `key`, or give the row another one"),
        ({"source": ["https://h.example/"]}, {}, "the key is empty; set `key`, or give the row another one"),
        ({"source": ["https://h.example/a//b"]}, {}, "the key holds `//`, an empty path segment; set `key`, or give the row another one"),
        ({"key": ["a" * 1020]}, {"prefix": "pppp/"}, "the key is 1,025 bytes long with its prefix; 1,024 are allowed; set `key`, or give the row another one"),
        ({"key": [".ferry-parts/1"]}, {"for_directory": True}, "a path segment of the key begins with `.ferry-parts`, which Ferry reserves for unfinished files; set `key`, or give the row another one"),
        ({"sku": [None]}, {"key": "{sku}/{sha256}"}, "the row has no {sku} for the key template"),
        ({"source": ["https://h.example/x"]}, {"key": "a.{source.ext}"}, "the row has no {source.ext} for the key template"),
        ({"id": ["a" * 980]}, {"key": "{id}/{sha256}"}, "the key is 1,045 bytes long with its prefix; 1,024 are allowed; set `key`, or give the row another one"),
    ],
)  # fmt: skip
def test_bad_key(tmp_path: Path, values: dict[str, list[str | None]], options: dict[str, Any], message: str) -> None:
    """A row with an unusable key stays, as bad_key, with the reason."""
    row = rows_of(tmp_path, {"source": [URL], **values}, **options)[0]
    assert (row["error_class"], row["message"]) == ("bad_key", message)


def test_source_url(tmp_path: Path) -> None:
    """IDs become encoded addresses; a source that is a URL stays; the message names a missing ID."""
    values: dict[str, list[str | None]] = {"source": [None, "s/2", URL, None], "id": ["a b/1", None, "3", None]}
    rows = rows_of(tmp_path, values, url="https://h.example/{id}.jpg")
    assert [row["source"] for row in rows] == ["https://h.example/a%20b/1.jpg", "https://h.example/s/2.jpg", URL, None]
    assert [row["key"] for row in rows] == ["a b/1.jpg", "s/2.jpg", "x/y.jpg", None]
    assert rows[3]["message"] == "the row in line 5 has no {id} for source.url"


MD5 = hashlib.md5(b"x").hexdigest()
SHA = hashlib.sha256(b"x").hexdigest()


def b64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()


@pytest.mark.parametrize(
    ("role", "text", "value"),
    [
        ("md5", MD5.upper(), MD5),
        ("md5", f" {b64(MD5)} ", MD5),
        ("sha256", SHA, SHA),
        ("sha256", b64(SHA), SHA),
        ("size", " 123 ", 123),
        ("size", "0", 0),
        ("size", "  ", None),
        ("etag", '"abc"', '"abc"'),
        ("content_type", " image/svg+xml; charset=utf-8", "image/svg+xml; charset=utf-8"),
        ("last_modified", "2024-01-02", "2024-01-02"),
    ],
)
def test_values(tmp_path: Path, role: str, text: str, value: object) -> None:
    """Digests become lower-case hex, sizes numbers; other values stay as they are."""
    row = row_of(tmp_path, **{role: text})
    assert (row[role], row["error_class"]) == (value, None)


@pytest.mark.parametrize(
    ("role", "text", "message"),
    [
        ("md5", MD5[:-1], f"md5 `{MD5[:-1]}` is not 32 hex digits or base64 of 16 bytes"),
        ("md5", SHA, f"md5 `{SHA[:60]}` is not 32 hex digits or base64 of 16 bytes"),
        ("md5", "z" * 32, f"md5 `{'z' * 32}` is not 32 hex digits or base64 of 16 bytes"),
        ("sha256", b64(MD5), f"sha256 `{b64(MD5)}` is not 64 hex digits or base64 of 32 bytes"),
        ("size", "123.0", "size `123.0` is not a whole number of bytes"),
        ("size", "-1", "size `-1` is not a whole number of bytes"),
        ("size", "9" * 19, f"size `{'9' * 19}` is not a whole number of bytes"),
        ("size", "٣", "size `٣` is not a whole number of bytes"),
        (
            "content_type",
            "image/jpeg\r\nX: y",
            "content_type `image/jpeg\\r\\nX: y` is not a media type such as image/jpeg",
        ),
        ("content_type", "jpeg", "content_type `jpeg` is not a media type such as image/jpeg"),
    ],
)
def test_bad_values(tmp_path: Path, role: str, text: str, message: str) -> None:
    """An invalid digest, size or media type is a problem of its row, never ignored."""
    row = row_of(tmp_path, **{role: text})
    assert (row["error_class"], row["message"], row[role]) == ("bad_line", message, None)


def test_reading_digests() -> None:
    """Digests are hex or base64 of the exact length; similar texts are refused."""
    assert read_digest(f"{MD5[:16]} {MD5[17:]}", 16) is None
    assert read_digest(b64(MD5).rstrip("="), 16) is None
    assert read_size("1_000") is None


def test_bad_lines_stay(tmp_path: Path) -> None:
    """A bad line is a row with the reader's reason."""
    row = rows_of(tmp_path, {"source": [None, URL]}, problems={0: "line 2: longer than 1 MiB"})[0]
    assert (row["error_class"], row["message"], row["source"]) == ("bad_line", "line 2: longer than 1 MiB", None)


ADDRESS = st.lists(
    st.sampled_from(
        ["http", "https", "HTTPS", "://", "a.example", "b-c.example", ":80", "u@", "/", "//", "x.jpg", "%41", "%2F", "?q=1/2",
         "?", "#f", " ", "\n", "\t", "é", "\\", '"', "-"]
    ),
    max_size=7,
).map("".join) | st.just(URL)  # fmt: skip


@given(st.lists(ADDRESS | st.none(), min_size=1, max_size=3))
def test_addresses_do_not_depend_on_those_beside_them(texts: list[str | None]) -> None:
    """Addresses that are read together give the sources, keys and problems of each read alone, and with an odd one."""

    def read(*texts: str | None) -> list[tuple[str | None, str | None, bool]]:
        problems: dict[int, tuple[str, str]] = {}
        batch = Batch(range(1, len(texts) + 1), None, {"source": list(texts)})
        sources, keys = Addresses(None, [], bare_hosts=False).sources(batch, problems)
        return [(source, key, at in problems) for at, (source, key) in enumerate(zip(sources, keys, strict=True))]

    assert read(*texts) == [line for text in texts for line in read(text)] == read(*texts, "no address")[:-1]


def test_row_ids() -> None:
    """IDs differ if parts begin or end elsewhere, and if a part is empty or missing."""
    tuples = [
        ("a", "b", "c"),
        ("ab", "", "c"),
        ("a", None, "c"),
        ("a", "", "c"),
        ("a", "1:b", "c"),
        ("a", "b", None),
        (None,) * 3,
    ]
    ids = {row_id(base_row_id(*parts), n) for parts in tuples for n in (0, 1, 2)}
    assert len(ids) == 3 * len(tuples)
    # Pinned: ledgers fold by these IDs, so they may never change.
    assert row_id(base_row_id("a", "b", "c"), 0) == "321cf3124838eafcf3df515fc440c7452def249dc89643bb5fb8e1bc260b2191"
    assert row_id(base_row_id("a", None, "c"), 2) == "93fe8a27a681ca14e58c021ec56ac3398b23a325d944911e5ba18e659118dcc9"


def test_ids_of_many_rows() -> None:
    """IDs that are made of whole columns are those of single rows, whatever the texts are."""
    texts = ["a.jpg", "", "é", "e\u0301", "\U0001f926\U0001f3fc\u200d\u2642\ufe0f", "a\0b", "1:a", "x" * 300, None]
    rows = list(itertools.product(texts, repeat=3))
    columns: dict[str, list[object]] = {name: [None] * len(rows) for name in _WITHOUT_IDS.names}
    columns |= {"row_no": [*range(len(rows))], "deferred_key": [False] * len(rows)}
    columns |= dict(zip(("source", "key", "id"), map(list, zip(*rows, strict=True)), strict=True))
    found = with_ids(duckdb.connect(), pa.table(columns, _WITHOUT_IDS))
    assert found.column("row_id").to_pylist() == [base_row_id(*row).hex() for row in rows]
    assert found.schema.equals(SCHEMA)


def test_ids_are_made_of_what_reports_do_not_show(tmp_path: Path) -> None:
    """A row's ID has its whole text, even where the columns have a part: an ID with a signature, an invalid key."""
    signed, no_key = "https://a.example/1?token=secret", "https://user:word@a.example/k"
    rows = rows_of(tmp_path, {"source": [URL, URL, None], "key": [None, no_key, "k"], "id": [signed, "2", "3"]})
    wanted = [(URL, "x/y.jpg", signed), (URL, no_key, "2"), (None, "k", "3")]
    assert [row["row_id"] for row in rows] == [base_row_id(*parts).hex() for parts in wanted]
    assert "secret" not in str(rows)
    assert "word" not in str(rows)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 100, 150_000])
def test_repeated_rows(tmp_path: Path, rows: int) -> None:
    """Duplicate rows are numbered in order over the complete manifest; the IDs do not depend on the batches."""
    rng = random.Random(rows)
    ids = [str(rng.randrange(max(1, rows // 2))) for _ in range(rows)]
    batches = [
        Batch(range(at + 1, at + 1 + len(part)), None, {"source": [URL] * len(part), "id": part})
        for at in range(0, rows, 7_001)
        if (part := ids[at : at + 7_001])
    ]
    result = normalise(
        duckdb.connect(),
        batches,
        url_template=None,
        key_template=None,
        for_directory=False,
        out_path=tmp_path / "r.parquet",
    )
    table = pq.read_table(result.path)
    seen: dict[str, int] = {}
    expected = []
    for id_ in ids:
        n = seen[id_] = seen.get(id_, -1) + 1
        expected.append(row_id(base_row_id(URL, "x/y.jpg", id_), n))
    assert table.column("row_id").to_pylist() == expected
    assert len(set(expected)) == rows
    assert table.column("id").to_pylist() == ids
    assert result.duplicates == rows - len(seen)


def test_numbering_spills(tmp_path: Path) -> None:
    """A million digests, each of them twice, are numbered in the order of the rows by a DuckDB with 150 MB."""
    rows, path = 1_000_000, tmp_path / "rows.parquet"
    con = duckdb.connect()
    con.execute("SET memory_limit = '150MB'; SET threads = 4; SET preserve_insertion_order = false")
    con.execute("SET temp_directory = ?", [str(tmp_path / "spill")])
    con.execute(
        f"COPY (SELECT n + 1 AS row_no, sha256((n % {rows // 2})::VARCHAR) AS row_id FROM range({rows}) numbers(n)) "
        f"TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP})"
    )
    assert find_duplicates(con, path) == rows // 2
    found = con.execute("SELECT count(*), min(row_no), max(row_no), min(n), max(n) FROM duplicates").fetchall()
    assert found == [(rows // 2, rows // 2 + 1, rows, 1, 1)]


def test_file(tmp_path: Path) -> None:
    """The file is private, has the schema with its version and groups of 64k rows, and its row numbers in order."""
    rows = 150_000
    batch = Batch(range(1, rows + 1), None, {"source": [f"https://h.example/{n}" for n in range(rows)]})
    result = normalise(
        duckdb.connect(),
        [batch],
        url_template=None,
        key_template=None,
        for_directory=False,
        out_path=tmp_path / "r.parquet",
    )
    with pq.ParquetFile(result.path) as file:
        assert file.schema_arrow.equals(SCHEMA)
        assert file.schema_arrow.metadata[b"ferry_schema"] == b"1"
        assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [65_536, 65_536, 18_928]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert result.path.stat().st_mode & 0o777 == 0o600
    assert pq.read_table(result.path).column("row_no").to_pylist() == list(range(1, rows + 1))
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    """A manifest that is invalid in the middle leaves no file that looks complete."""
    path = tmp_path / "a.csv"
    path.write_text("url\n" + f"{URL}\n" * 100_000 + "a,b\n")  # far behind the sample that opening reads
    manifest = open_manifest(path, "a.csv", Columns())
    with pytest.raises(UserError):
        normalise(
            duckdb.connect(),
            manifest.batches(),
            url_template=None,
            key_template=None,
            for_directory=False,
            out_path=tmp_path / "r",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_several_addresses_of_one_object(tmp_path: Path) -> None:
    """The first usable address is the source, which decides key and ID; the others follow in order, each once."""
    first, second, third = (f"https://h/{n}.jpg" for n in (1, 2, 3))
    given = [
        ([first, second, third], first, [second, third]),
        ([first, None, third], first, [third]),
        ([first, first, first], first, None),
        ([first, second, second], first, [second]),
        ([first, "n/a", None], first, None),
        ([None, second, third], second, [third]),
        ([" ", None, third], third, None),
        (["n/a", second, None], second, None),
        (["n/a", "no", third], third, None),
        ([first, " //h.example/a b.jpg ", None], first, ["https://h.example/a%20b.jpg"]),
        ([None, "n/a", None], "n/a", None),
        (["no", "n/a", None], "no", None),
        ([None, None, None], None, None),
    ]  # fmt: skip
    cells = list(zip(*(row for row, _, _ in given), strict=True))
    values = {"source": list(cells[0]), more_source(2): list(cells[1]), more_source(3): list(cells[2])}
    batch = Batch(range(1, len(given) + 1), range(2, len(given) + 2), values, {})
    result = normalise(
        duckdb.connect(), [batch], url_template=None, key_template=None, for_directory=False,
        sources=["url", "cdn", "old"], out_path=tmp_path / "m.parquet",
    )  # fmt: skip
    rows = pq.read_table(result.path).to_pylist()
    assert [(row["source"], row["alternatives"]) for row in rows] == [(source, more) for _, source, more in given]
    usable = [row for row in rows if row["error_class"] is None]
    assert [row["key"] for row in usable] == [row["source"].removeprefix("https://h/") for row in usable]
    assert [row["message"] for row in rows[-3:]] == [
        *["the source is not a URL; write https://..., or set `source.url` if it is an ID"] * 2,
        f"the row in line {len(given) + 1} has no URL",
    ]
    one = normalise(
        duckdb.connect(), [Batch(range(1, 2), range(2, 3), {"source": [first]}, {})], url_template=None,
        key_template=None, for_directory=False, out_path=tmp_path / "one.parquet",
    )  # fmt: skip
    assert pq.read_table(one.path).to_pylist()[0]["row_id"] == rows[0]["row_id"]
    assert result.ignored == {"url": 2, "cdn": 4}
