"""What `ferry plan` shows of a manifest: examples, hosts, blocked addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from ferry.planning.preview import Preview, preview
from tests.support.helpers import make_job


def preview_of(
    rows: list[tuple[str | None, str | None, str | None]],
    tmp_path: Path,
    alternatives: dict[int, list[str]] = {},
    classes: dict[int, str] = {},
    **job: Any,
) -> Preview:
    """Returns the preview of rows of source, key and error class, with further addresses and classes by row."""
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], []]
    table = pa.table(
        {"row_no": list(range(1, len(rows) + 1)), "source": columns[0], "key": columns[1], "error_class": columns[2],
         "alternatives": [alternatives.get(n) for n in range(len(rows))],
         "storage_class": [classes.get(n) for n in range(len(rows))]},
        schema=pa.schema(
            [("row_no", pa.int64()), *((name, pa.string()) for name in ("source", "key", "error_class")),
             ("alternatives", pa.list_(pa.string())), ("storage_class", pa.string())]
        ),
    )  # fmt: skip
    with duckdb.connect() as con:
        con.register("manifest", table)
        return preview(con, make_job(manifest=str(tmp_path / "x.csv"), **job))


def test_examples_are_spread_over_the_manifest(tmp_path: Path) -> None:
    """The first row, the last one and three between, as complete URIs without secrets; unusable rows are left out."""
    rows: list[tuple[str | None, str | None, str | None]] = [
        (f"https://img.example/{n}.jpg?sig=secret", f"{n}.jpg", None) for n in range(101)
    ]
    rows[50] = (None, None, "bad_url")
    for uri in ("s3://new/p", "s3://new/p/"):
        found = preview_of(rows, tmp_path, destination=uri)
        assert [target for _, target in found.mappings] == [f"s3://new/p/{n}.jpg" for n in (0, 25, 75, 100)]
    assert "secret" not in str(found)


def test_few_rows(tmp_path: Path) -> None:
    """A manifest of one row, and one without rows."""
    one = preview_of([("https://img.example/1.jpg", "1.jpg", None)], tmp_path)
    assert len(one.mappings) == 1
    assert preview_of([], tmp_path) == Preview()


def test_hosts_are_counted(tmp_path: Path) -> None:
    """Hosts with most rows first, with port and without userinfo; ten are shown."""
    sources = ["https://a.example/1", "https://u:p@A.example/2", "https://a.example:8443/3", "s3://bucket/4"]
    sources += [f"https://h{n}.example/{m}" for n in range(12) for m in range(3)]
    found = preview_of([(source, "k", None) for source in sources], tmp_path)
    assert list(found.hosts.items())[:3] == [("h0.example", 3), ("h1.example", 3), ("h10.example", 3)]
    assert len(found.hosts) == 10
    assert found.more_hosts == 5
    assert preview_of([(source, "k", None) for source in sources[:4]], tmp_path).hosts == {
        "a.example": 2, "a.example:8443": 1, "bucket": 1
    }  # fmt: skip


def test_blocked_addresses_are_named(tmp_path: Path) -> None:
    """Addresses and ports that the job does not allow, without a look-up of any name; none that it allows."""
    sources = ["http://127.0.0.1:8000/1", "http://127.0.0.1:8000/2", "http://10.0.0.1/1", "https://img.example:22/1"]
    rows: list[tuple[str | None, str | None, str | None]] = [(source, "k", None) for source in sources]
    warnings = preview_of([*rows, ("https://img.example/1", "k", None)], tmp_path, source={}).warnings
    assert [text.partition(":")[0] for text in sorted(warnings)] == [
        "1 row of 10.0.0.1 would fail", "1 row of img.example", "2 rows of 127.0.0.1"
    ]  # fmt: skip
    allowed = {"allow_private_addresses": ["127.0.0.1", "10.0.0.0/8"]}
    (left,) = preview_of(rows, tmp_path, source=allowed).warnings
    assert left.startswith("1 row of img.example:22 would fail: ")
    (left,) = preview_of(
        rows, tmp_path, {0: ["https://h/1"]}, source={"allow_private_addresses": ["10.0.0.1"]}
    ).warnings[:1]
    assert left.startswith("2 rows of 127.0.0.1:8000 would fail, 1 of them unless another address has the object: ")
    (left,) = preview_of(rows[:1], tmp_path, {0: ["https://h/1"]}, source={}).warnings
    assert left.startswith("1 row of 127.0.0.1:8000 would fail unless another address has the object: ")


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"destination": "s3://b/"}, None),  # the server decides
        ({"destination": "file:///d/"}, "3 rows would lose their storage_class: GLACIER, STANDARD_IA, which does not"),
        (
            {"destination": "file:///d/", "on_lost_attribute": "fail"},
            "3 rows would fail: they have GLACIER, ",
        ),
        ({"destination": {"uri": "file:///d/", "attributes": {"drop": ["storage_class"]}}}, None),
        ({"destination": {"uri": "file:///d/", "attributes": {"keep": ["storage_class"]}}}, "3 rows would lose"),
    ],
)
def test_classes_that_the_destination_does_not_have(job: dict[str, Any], words: str | None, tmp_path: Path) -> None:
    """A listing shows the class alone; neither the standard one nor that of an unusable row counts as lost."""
    rows: list[tuple[str | None, str | None, str | None]] = [(f"s3://old/{n}", f"{n}", None) for n in range(5)]
    rows.append((None, None, "bad_url"))
    classes = dict(enumerate(("STANDARD", "STANDARD_IA", "STANDARD_IA", "GLACIER", "STANDARD", "GLACIER")))
    found = preview_of(rows, tmp_path, classes=classes, **job).warnings
    assert len(found) == (words is not None)
    assert (words or "") in "".join(found)
