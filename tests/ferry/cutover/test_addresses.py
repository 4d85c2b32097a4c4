"""Old and new addresses of copies, from a real plan and ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ferry.core import ErrorClass, Status, UserError
from ferry.cutover import create_addresses
from ferry.cutover.addresses import source_key
from ferry.job import Job
from ferry.state.files import DirectoryState
from ferry.state.ledger import append_outcomes
from ferry.state.queries import folded_ledger
from tests.support.helpers import make_job, make_outcome, plan, write_list


def addresses(tmp_path: Path, lines: list[list[str]], header: tuple[str, ...], **given: Any) -> list[dict[str, Any]]:
    """The table `addresses` of a job whose rows are copied, but for duplicates, and those with `missing` in them."""
    write_list(tmp_path / "list.csv", lines, header)
    job: Job = make_job(manifest=str(tmp_path / "list.csv"), destination=f"file://{tmp_path}/out/", **given)
    state = DirectoryState(tmp_path / "state")
    plan(job, state)
    with folded_ledger(state) as con:
        rows = con.execute("SELECT row_id, source, key, id FROM manifest ANTI JOIN latest USING (row_id)").fetchall()
    copied = [
        make_outcome(row_id, Status.COPIED, source=source, key=key, id=id_, run_no=1)
        if "missing" not in source
        else make_outcome(row_id, Status.FAILED, source=source, key=key, error_class=ErrorClass.NOT_FOUND)
        for row_id, source, key, id_ in rows
    ]
    append_outcomes(state, copied, 1, "c", 0)
    in_parts, found = (_addresses(state, job, at_once) for at_once in (2, 1_000))
    assert in_parts == found  # however many rows are joined at once
    return found


def _addresses(state: DirectoryState, job: Job, at_once: int) -> list[dict[str, Any]]:
    with folded_ledger(state) as con:
        create_addresses(con, job, at_once)
        table = con.sql("SELECT * FROM addresses ORDER BY row_no, old_url").to_arrow_table()
        found: list[dict[str, Any]] = table.to_pylist()
        return found


def test_old_and_new_addresses(tmp_path: Path) -> None:
    """Each old address of a row with a copy is there, a duplicate's too; a row without a copy is not."""
    lines = [
        ["https://img.example/a%20b.jpg?v=1", "1"],
        ["https://img.example/a%20b.jpg?v=1", "1"],
        ["https://img.example/missing.jpg", "2"],
    ]
    found = addresses(tmp_path, lines, ("url", "id"), public_url="https://new.example/p/{key}")
    assert [(row["row_no"], row["old_url"], row["public_url"]) for row in found] == [
        (n, "https://img.example/a%20b.jpg?v=1", "https://new.example/p/a%20b.jpg")
        for n in (found[0]["row_no"], found[1]["row_no"])
    ]
    assert found[0]["destination"] == f"file://{tmp_path}/out/a b.jpg"


def test_without_public_addresses(tmp_path: Path) -> None:
    """Without the setting the new address is not known."""
    (found,) = addresses(tmp_path, [["https://img.example/1.jpg"]], ("url",))
    assert found["public_url"] is None
    assert found["old_url"] == "https://img.example/1.jpg"


def test_the_old_address_is_another_than_the_row_s(tmp_path: Path) -> None:
    """Rows of an internal host: visitors asked a CDN."""
    source = {"public_url": "https://cdn.example/{key}"}
    (found,) = addresses(tmp_path, [["https://img.example/a%2Bb.jpg"]], ("url",), source=source)
    assert found["old_url"] == "https://cdn.example/a%2Bb.jpg"


def test_a_row_without_an_id(tmp_path: Path) -> None:
    """Its address is not known if the template names the ID."""
    lines = [["https://img.example/1.jpg", ""], ["https://img.example/2.jpg", "ä 2"]]
    found = addresses(tmp_path, lines, ("url", "id"), public_url="https://n.example/{id}")
    assert [row["public_url"] for row in found] == [None, "https://n.example/%C3%A4%202"]


def test_all_addresses_of_a_row(tmp_path: Path) -> None:
    """A row with two addresses has a line for each, which lead to one object; a duplicate's, too."""
    lines = [["https://a.example/1.jpg", "https://b.example/x.jpg"]] * 2
    found = addresses(
        tmp_path, lines, ("url", "cdn"), columns={"source": ["url", "cdn"]}, public_url="https://n.example/{key}"
    )
    assert sorted({(row["old_url"], row["public_url"]) for row in found}) == [
        ("https://a.example/1.jpg", "https://n.example/1.jpg"), ("https://b.example/x.jpg", "https://n.example/1.jpg"),
    ]  # fmt: skip
    assert len({row["row_id"] for row in found}) == 2


def test_a_duplicate_whose_key_is_known_late(tmp_path: Path) -> None:
    """The duplicate has the key that the first row got after its download."""
    lines = [["https://img.example/1.jpg"]] * 2
    found = addresses(tmp_path, lines, ("url",), key="{sha256}.jpg", public_url="https://n.example/{key}")
    assert len({row["row_id"] for row in found}) == 2
    assert len({row["key"] for row in found}) == 1


def test_a_shared_address_is_refused(tmp_path: Path) -> None:
    """Two keys with one public address: a visitor would get one of two objects."""
    lines = [["https://img.example/a/1.jpg"], ["https://img.example/b/1.jpg"], ["https://img.example/b/2.jpg"]]
    with pytest.raises(UserError, match=r"`a/1.jpg` and `b/1.jpg` one address, https://n.example/1.jpg"):
        addresses(tmp_path, lines, ("url",), public_url="https://n.example/{key.name}")


@pytest.mark.parametrize(
    ("source", "roots", "key"),
    [
        ("s3://old/images/a/1.jpg", ["s3://old/images/"], "a/1.jpg"),
        ("s3://old/other/1.jpg", ["s3://old/images/"], "other/1.jpg"),
        ("file:///srv/images/1.jpg", ["file:///srv/images/"], "1.jpg"),
        ("https://origin.internal/img/a%20b.jpg?v=1", [], "img/a b.jpg"),
    ],
)
def test_the_key_of_a_source(source: str, roots: list[str], key: str) -> None:
    assert source_key(source, roots) == key
