"""The first look at a manifest finds what a job for it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferry.core.errors import UserError
from ferry.manifest.look import Look, look_at, separator_of


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["https://a/1.jpg", "https://a/2.jpg"], None),
        ([], None),
        (["https://a/1.jpg", "https://a/2.jpg, https://a/3.jpg"], ", "),
        (["https://a/1.jpg,https://a/2.jpg", "https://a/1.jpg, https://a/2.jpg"], ","),
        (["https://a/1.jpg;https://a/2,3.jpg"], ";"),
        (["https://a/1.jpg | https://a/2.jpg|x"], " | "),
        (["https://a/1.jpg|https://a/2.jpg|"], "|"),
        (["https://a/1.jpg https://a/2.jpg"], " "),
        (["https://a/1.jpg\nhttps://a/2.jpg"], "\n"),
        (["https://a/1.jpg?next=https://b/2.jpg"], None),
        (["https://a/1.jpg and https://a/2.jpg"], None),
    ],
)
def test_what_separates_addresses(cells: list[str], separator: str | None) -> None:
    """Of the usual separators, the first one that leaves nothing but addresses."""
    assert separator_of(cells) == separator


def look(folder: Path, text: str, name: str = "list.csv") -> Look:
    path = folder / name
    path.write_text(text)
    return look_at(path)


def test_a_usual_list(tmp_path: Path) -> None:
    """Nothing needs to be set; hosts are counted, also of addresses that are completed."""
    found = look(tmp_path, "sku,url\n1,https://a.example/1.jpg\n2,//a.example/2.jpg\n3,http://B.example/my 3.jpg\n4,\n")
    assert (found.columns, found.has_only_ids, found.left, found.rows) == ({}, False, [], 4)
    assert found.recognised == {"source": "url", "id": "sku"}
    assert found.samples == {"source": "https://a.example/1.jpg", "id": "1"}
    assert found.hosts == {"a.example": 2, "b.example": 1}
    assert found.private_hosts == []


def test_a_shop_s_list(tmp_path: Path) -> None:
    """The column of addresses has a name of its own, several in a cell, and some are private."""
    text = "nr,Bilder,size\n1,https://a.example/1.jpg|http://127.0.0.1/2.jpg,38\n2,http://img.internal/3.jpg,39\n"
    found = look(tmp_path, text)
    assert found.columns == {"source": "Bilder", "split": "|"}
    assert found.rows == 3
    assert found.private_hosts == ["127.0.0.1", "img.internal"]
    assert ["`size` is not read as the size" in why for why in found.left] == [True]


@pytest.mark.parametrize(("name", "text"), [("ids.txt", "1\n2\n"), ("ids.csv", "sku,colour\n1,red\n")])
def test_a_list_of_ids(name: str, text: str, tmp_path: Path) -> None:
    """Addresses must be made from them."""
    found = look(tmp_path, text, name)
    assert found.has_only_ids
    assert not found.hosts


def test_no_list(tmp_path: Path) -> None:
    """Its error is that of a plan."""
    with pytest.raises(UserError, match=r"list.csv is empty"):
        look(tmp_path, "")
    with pytest.raises(UserError, match="no column is recognised as the source"):
        look(tmp_path, "colour,form\nred,round\n")
    with pytest.raises(UserError, match="contains no rows"):
        look(tmp_path, "sku,url\n")


def test_more_columns_with_addresses(tmp_path: Path) -> None:
    """They are named: only the reader knows whether all addresses of a row are of one object."""
    text = "sku,url,cdn,note\n1,https://a.example/1.jpg,https://b.example/1.jpg,x\n2,https://a.example/2.jpg,,y\n"
    assert look(tmp_path, text).more_sources == ["cdn"]
    assert look(tmp_path, "sku,url\n1,https://a.example/1.jpg\n").more_sources == []
    with pytest.raises(UserError, match=r"name them in order: `columns: \{source: \[url, image_link\]\}`"):
        look(tmp_path, "url,image_link\nhttps://a/1.jpg,https://b/1.jpg\n")
