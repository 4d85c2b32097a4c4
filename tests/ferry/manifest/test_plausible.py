"""Columns with ambiguous names have a role only where their values look like it, and only the first plan decides."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferry.core.errors import UserError
from ferry.job import Columns
from ferry.manifest.columns import AMBIGUOUS_NAMES, USUAL_NAMES
from ferry.manifest.open import Manifest, open_manifest
from ferry.manifest.plausible import Reading, is_plausible


@pytest.mark.parametrize(
    ("role", "values", "is_so"),
    [
        ("size", ["48213", " 51877 "], True),
        ("size", ["201", "0", "512"], True),  # a few empty files do not matter
        ("size", ["38", "39", "45"], False),
        ("size", ["M", "XL"], False),
        ("size", ["48213", "1.2 MB"], False),
        ("size", ["0", "0"], False),
        ("size", [], False),
        ("key", ["shoes/1.jpg", "a.webp"], True),
        ("key", ["Home/Shoes", "Home/Shoes/Item 1"], False),
        ("key", ["https://img.example/1.jpg"], False),
        ("key", ["v1.2/Shoes", "a.jpg"], False),
        ("key", ["a.jpg"] * 19 + ["folder"], True),
        ("key", ["a.jpg"] * 18 + ["folder"] * 2, False),
        ("last_modified", ["2026-11-29T10:00:00Z", "2026-11-29"], True),
        ("last_modified", ["Sun, 29 Nov 2026 10:00:00 GMT"], True),
        ("last_modified", ["yes"], False),
        ("last_modified", ["J. Smith"], False),
        ("content_type", ["image/jpeg", "image/svg+xml; charset=utf-8"], True),
        ("content_type", ["image/jpeg", "product"], False),
    ],
)
def test_what_values_look_like_a_role(role: str, values: list[str], is_so: bool) -> None:
    """The table of is_plausible."""
    assert is_plausible(role, values) is is_so


def test_no_name_is_both() -> None:
    """A name means its role always, or by its values."""
    usual = {name for names in USUAL_NAMES.values() for name in names}
    assert not usual & {name for names in AMBIGUOUS_NAMES.values() for name in names}
    assert "updated_at" not in usual | {name for names in AMBIGUOUS_NAMES.values() for name in names}


def opened(
    folder: Path, columns: Mapping[str, Sequence[Any]], ending: str = "csv", roles: dict[str, Any] = {}, **given: Any
) -> Manifest:
    path = folder / f"list.{ending}"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif ending == "parquet":
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)
    return open_manifest(path, str(path), Columns(**roles), **given)


def column(manifest: Manifest, name: str) -> list[str | None]:
    return [value for batch in manifest.batches() for value in batch.values[name]]


URLS = ["https://img.example/1.jpg", "https://img.example/2.jpg"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_shop_s_list(ending: str, tmp_path: Path) -> None:
    """Shoe sizes are not read as lengths, nor categories as keys; the plan says so, and what to write."""
    columns = {
        "sku": ["A1", "A2"], "image_url": URLS, "size": ["38", "XL"], "path": ["Home/Shoes", "Home/Hats"],
        "updated_at": ["2026-11-01", "2026-11-02"], "content_type": ["product", "product"],
    }  # fmt: skip
    manifest = opened(tmp_path, columns, ending)
    assert manifest.recognised == {"source": "image_url", "id": "sku"}
    assert manifest.unread >= {"size", "key", "last_modified", "content_type"}
    assert sorted(manifest.left) == [
        "the column `content_type` is not read as the content_type: its values, such as `product`, are not media "
        "types, such as image/jpeg. If it is, write `columns: {content_type: content_type}`",
        "the column `path` is not read as the key: its values, such as `Home/Shoes`, `Home/Hats`, are not paths of "
        "files, such as shoes/1.jpg. If it is, write `columns: {key: path}`",
        "the column `size` is not read as the size: its values, such as `38`, `XL`, are not lengths of files in bytes. "
        "If it is, write `columns: {size: size}`",
    ]
    for _ in range(2):  # the first time continues after the sample
        assert column(manifest, "source") == URLS


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_list_of_files(ending: str, tmp_path: Path) -> None:
    """Real sizes and paths are read; of two columns that could be the key, the first one with paths of files is."""
    columns = {"url": URLS, "size": ["48213", "51877"], "path": ["Home/Shoes", "Home"], "file_name": ["a.jpg", "b.jpg"]}
    manifest = opened(tmp_path, columns, ending)
    assert manifest.recognised == {"source": "url", "key": "file_name", "size": "size"}
    assert manifest.left == []
    for _ in range(2):
        assert column(manifest, "key") == ["a.jpg", "b.jpg"]
        assert column(manifest, "size") == ["48213", "51877"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_column_that_cannot_be_read(ending: str, tmp_path: Path) -> None:
    """An array of sizes does not fail its row, unless the job names the column."""
    manifest = opened(tmp_path, {"url": URLS, "size": [["S", "M"], ["L"]]}, ending)
    assert manifest.recognised == {"source": "url"}
    assert not any(batch.problems for batch in manifest.batches())
    with pytest.raises(UserError, match=r"nested|an array"):
        list(opened(tmp_path, {"url": URLS, "size": [["S", "M"], ["L"]]}, ending, {"size": "size"}).batches())


def test_what_the_job_says_counts(tmp_path: Path) -> None:
    """A column that is named is read whatever its values are; with null none is."""
    shoes = {"url": URLS, "size": ["38", "39"]}
    assert opened(tmp_path, shoes, roles={"size": "size"}).recognised == {"source": "url", "size": "size"}
    files = {"url": URLS, "size": ["48213", "51877"], "content_length": ["48213", "51877"], "id": ["1", "2"]}
    manifest = opened(tmp_path, files, roles={"size": None, "id": None})
    assert manifest.recognised == {"source": "url"}
    assert manifest.unread >= {"size", "id"}
    assert manifest.left == []


def test_the_last_plan_decides(tmp_path: Path) -> None:
    """Lists of later runs are read as the first one was, whatever their first rows hold."""
    categories = {"url": URLS, "path": ["Home/Shoes", "Home"]}
    files = {"url": URLS, "path": ["a.jpg", "b.jpg"]}
    as_key, without = {"source": "url", "key": "path"}, {"source": "url"}
    assert opened(tmp_path, categories, decided=Reading(as_key, False)).recognised == as_key
    assert opened(tmp_path, files, decided=Reading(without, False)).recognised == without
    assert opened(tmp_path, files, decided=Reading(without, False)).left == []
    with pytest.raises(UserError, match="lacks the column `path`, from which the earlier rows have their keys"):
        opened(tmp_path, {"url": URLS}, decided=Reading(as_key, False))
    by_template = opened(tmp_path, {"url": URLS}, decided=Reading(as_key, False), keys_from_column=False)
    assert by_template.recognised == without


def test_a_template_may_name_such_a_column(tmp_path: Path) -> None:
    """Its values are there for the template, and are not the role's."""
    manifest = opened(tmp_path, {"url": URLS, "size": ["38", "39"]}, needed=["size"])
    assert "size" in manifest.unread
    assert column(manifest, "size") == ["38", "39"]


BARE = ["cdn.old.example/1.jpg", "cdn.old.example/2.jpg"]


@pytest.mark.parametrize(
    ("sources", "are_bare"),
    [(BARE, True), ([*BARE, "https://cdn.old.example/3.jpg"], False), ([*BARE, "shoes/3.jpg"], False)],
)
def test_addresses_lack_their_scheme_only_where_all_do(sources: list[str], are_bare: bool, tmp_path: Path) -> None:
    """One row with a scheme, or with a path, makes the others what they are: no addresses. The first plan decides."""
    assert opened(tmp_path, {"url": sources}).bare_hosts is are_bare
    decided = Reading({"source": "url"}, not are_bare)
    assert opened(tmp_path, {"url": sources}, decided=decided).bare_hosts is not are_bare
    assert not opened(tmp_path, {"url": sources}, url_template="https://h/{id}").bare_hosts  # these are IDs


@pytest.mark.parametrize("ending", ["txt", "csv"])
@pytest.mark.parametrize("sources", [BARE, [f"//{bare}" for bare in BARE]])
def test_a_list_of_such_addresses_alone(sources: list[str], ending: str, tmp_path: Path) -> None:
    """It needs no header row."""
    path = tmp_path / f"list.{ending}"
    path.write_text("\n".join(sources) + "\n")
    manifest = open_manifest(path, str(path), Columns())
    assert list(manifest.recognised) == ["source"]
    assert column(manifest, "source") == sources


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_column_of_addresses_is_proposed(ending: str, tmp_path: Path) -> None:
    """The user need not guess which of the columns Ferry wants, nor how to write it."""
    names = {"Artikel": ["1", "2"], "Beschreibung": ["a", "https://x"], "Bild-URL": URLS}
    with pytest.raises(UserError) as caught:
        opened(tmp_path, names, ending)
    assert str(caught.value).endswith(
        "no column is recognised as the source; the columns are: `Artikel`, `Beschreibung`, `Bild-URL`. `Bild-URL` "
        "contains addresses: write `columns: {source: Bild-URL}`"
        if ending != "jsonl"
        else "`Bild-URL` contains addresses: write `columns: {source: Bild-URL}`"
    )
    with pytest.raises(UserError, match=r"name it with `columns: \{source: ...\}`$"):
        opened(tmp_path, {"Artikel": ["1", "2"], "Farbe": ["rot", "blau"]}, ending)


@pytest.mark.parametrize("field", ["id:6d", "id|title", "id : 06x"])
def test_a_format_that_is_none(field: str, tmp_path: Path) -> None:
    """It is not taken for the name of a column, such as `g:id` is."""
    with pytest.raises(UserError, match=r"the key template has `\{id.*\}`; the formats of a field are `\{id:06d\}`"):
        opened(tmp_path, {"url": URLS, "id": ["1", "2"]}, needed=[field])
    assert column(opened(tmp_path, {"url": URLS, "g:id": ["1", "2"]}, needed=["g:id"]), "g:id") == ["1", "2"]
    with pytest.raises(UserError, match=r"names \{g:idd\}.*did you mean \{g:id\}"):
        opened(tmp_path, {"url": URLS, "g:id": ["1", "2"]}, needed=["g:idd"])
