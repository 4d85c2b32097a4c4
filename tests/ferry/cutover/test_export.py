"""Exported tables: the map from old to new addresses, and the failures."""

from __future__ import annotations

import csv
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ferry.core.errors import UserError
from ferry.cutover import export as write
from ferry.cutover import files
from ferry.cutover.files import Exported, What
from ferry.job import Job
from ferry.state import ledger
from ferry.state.files import DirectoryState
from tests.support.helpers import chunk_rows, directory_state, make_job, make_outcome, plan, write_list
from tests.support.ten_rows import NASTY, SIGNED, ten_rows

pytestmark = pytest.mark.matrix

AT = datetime(2026, 1, 2, tzinfo=UTC)


def export(state: DirectoryState, what: What, path: Path, **given: Any) -> int:
    """Exports from a job with the destination `s3://new/p/` and returns the number of rows."""
    return exported(state, what, path, **given).rows


def exported(
    state: DirectoryState, what: What, path: Path, *, full: bool = False, form: str | None = None, **job: Any
) -> Exported:
    values: Job = make_job(**{"destination": "s3://new/p/", **job})
    return write(state, values, path, at=AT, what=what, form=form, full=full)


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    """Returns a state of ten rows with the IDs of NASTY: 0-3 copied, 4-5 unchanged, 6-8 failed, 9 pending."""
    return ten_rows(tmp_path)


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    frame = (
        pd.read_excel(path, dtype=str, keep_default_na=False, engine="openpyxl")
        if path.suffix == ".xlsx"
        else pd.read_parquet(path)
    )
    lines: list[Any] = frame.to_dict("records")
    return lines


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_the_map(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """The map has the old address and new key of each existing object, in the manifest's order, redacted."""
    path = tmp_path / f"map.{ending}"
    assert export(state, "map", path, full=False) == 6
    lines = read(path)
    assert [line["destination"] for line in lines] == [f"s3://new/p/{n}.jpg" for n in range(6)]
    assert [line["key"] for line in lines] == [f"{n}.jpg" for n in range(6)]
    assert lines[0]["source"] == "redacted/0.jpg"
    assert [line["status"] for line in lines] == ["copied"] * 4 + ["unchanged"] * 2
    assert b"topsecret" not in path.read_bytes()


@pytest.mark.parametrize("full", [False, True])
def test_old_and_new_addresses(full: bool, state: DirectoryState, tmp_path: Path) -> None:
    """The map's last columns are the addresses of visitors. Rows without a copy are counted."""
    path = tmp_path / "map.csv"
    written = exported(state, "map", path, full=full, public_url="https://n.example/{key}")
    assert written.left_out == {"without_copy": 4}
    assert written.notes == ("4 rows left out: without a copy. `ferry failures` says why",)
    lines = read(path)
    assert list(lines[0])[-3:] == ["address", "old_url", "public_url"]
    assert [line["public_url"] for line in lines] == [f"https://n.example/{n}.jpg" for n in range(6)]
    assert lines[0]["old_url"].endswith("?Signature=topsecret") == full
    assert lines[1]["old_url"] == "https://img.example/1.jpg"


def test_a_format_whatever_the_ending_is(state: DirectoryState, tmp_path: Path) -> None:
    """The format that is named decides. Failures cannot be redirects."""
    assert exported(state, "failures", tmp_path / "f.txt", form="csv").format == "csv"
    assert len(read((tmp_path / "f.txt").rename(tmp_path / "f.csv"))) == 3
    with pytest.raises(UserError, match="failures are written as csv"):
        exported(state, "failures", tmp_path / "f", form="nginx-map")


def test_redirects_need_public_addresses(state: DirectoryState, tmp_path: Path) -> None:
    """The message names the setting, and nothing is written."""
    with pytest.raises(UserError, match="set `public_url` in the job"):
        exported(state, "map", tmp_path / "r.conf", form="nginx-map")
    assert [path.name for path in tmp_path.iterdir() if "r.conf" in path.name] == []


@pytest.mark.parametrize(("full", "mode"), [(False, 0o644), (True, 0o600)])
def test_redirects_are_for_servers(full: bool, mode: int, state: DirectoryState, tmp_path: Path) -> None:
    """Servers read redirects as users of their own; only with `full` may the file contain credentials."""
    path = tmp_path / "r.conf"
    exported(state, "map", path, form="nginx-map", full=full, public_url="https://n.example/{key}")
    assert path.stat().st_mode & 0o777 == mode
    assert ("topsecret" in path.read_text()) == full


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_no_cell_is_a_formula(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """Text that begins like a formula gets a quote in front in .csv and .xlsx files."""
    export(state, "map", tmp_path / f"map.{ending}", full=False)
    ids = [line["id"] for line in read(tmp_path / f"map.{ending}")]
    assert ids == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\\tx", "plain"]
    export(state, "failures", tmp_path / f"failures.{ending}", full=False)
    assert read(tmp_path / f"failures.{ending}")[0]["message"] == "'=cmd|' /C calc'!A0"


def test_parquet_is_for_programs(state: DirectoryState, tmp_path: Path) -> None:
    """Values in a .parquet file are not changed."""
    export(state, "map", tmp_path / "map.parquet", full=False)
    assert [line["id"] for line in read(tmp_path / "map.parquet")] == NASTY[:6]


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_failures_for_people(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """All failures are exported, control characters in IDs are accepted, and status codes are whole numbers."""
    path = tmp_path / f"failures.{ending.upper() if ending == 'csv' else ending}"
    assert export(state, "failures", path, full=False) == 3
    lines = read(path.rename(path.with_suffix(f".{ending}")))
    assert [line["key"] for line in lines] == ["6.jpg", "7.jpg", "8.jpg"]
    if ending != "parquet":
        assert [line["status_code"] for line in lines] == ["404", "403", ""]


def test_sizes_are_whole_numbers(state: DirectoryState, tmp_path: Path) -> None:
    """Sizes are whole numbers even if one is not known."""
    export(state, "map", tmp_path / "map.csv", full=False)
    assert [line["size"] for line in read(tmp_path / "map.csv")] == ["5"] * 4 + [""] * 2


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_full_gives_sources_byte_for_byte(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """Sources are unredacted only with `full`, since they may contain signatures."""
    path = tmp_path / f"map.{ending}"
    export(state, "map", path, full=True)
    assert read(path)[0]["source"] == SIGNED


@pytest.mark.parametrize("name", ["map.txt", "map", "map.csv.gz", "map.json"])
def test_another_ending_is_an_error_of_the_user(name: str, state: DirectoryState, tmp_path: Path) -> None:
    """An unknown file extension raises UserError."""
    with pytest.raises(UserError, match=r"\.csv, \.parquet or \.xlsx"):
        export(state, "map", tmp_path / name, full=False)


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_a_folder_that_is_not_there_is_an_error_of_the_user(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """A file in a missing folder raises UserError."""
    with pytest.raises(UserError):
        export(state, "map", tmp_path / "none" / f"map.{ending}", full=False)


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_an_odd_path_is_written(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """A path with quotes and spaces is written to as it is."""
    path = tmp_path / f'it\'s a "map".{ending}'
    assert export(state, "map", path, full=False) == 6
    assert len(read(path)) == 6


def test_an_empty_answer_is_a_file_with_a_header(tmp_path: Path) -> None:
    """An export without rows is a file with its columns."""
    state = directory_state(tmp_path)
    write_list(tmp_path / "list.csv", [["https://img.example/1.jpg"]])
    plan(make_job(manifest=str(tmp_path / "list.csv")), state)
    for ending in ("csv", "xlsx", "parquet"):
        assert export(state, "failures", tmp_path / f"f.{ending}", full=False) == 0
        assert read(tmp_path / f"f.{ending}") == []
    assert (tmp_path / "f.csv").read_text().startswith("id,source,key,error_class")


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_an_export_is_for_the_owner_alone(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """An exported file has mode 0600 under any umask."""
    path = tmp_path / f"map.{ending}"
    path.touch(mode=0o666)
    export(state, "map", path, full=True)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_a_map_is_made_in_parts(
    ending: str, full: bool, state: DirectoryState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map of more rows than are joined at once is the same, and leaves nothing behind."""
    assert export(state, "map", tmp_path / f"whole.{ending}", full=full) == 6
    monkeypatch.setattr(files, "ROWS_AT_ONCE", 2)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert export(state, "map", tmp_path / f"parts.{ending}", full=full) == 6
    whole, parts = (list(map(str, read(tmp_path / f"{name}.{ending}"))) for name in ("whole", "parts"))  # NaN != NaN
    assert parts == whole
    assert not list((tmp_path / "tmp").iterdir())


def test_a_csv_is_written_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row once, in the order of the manifest, under one heading; a size that is missing changes no other batch."""
    monkeypatch.setattr(files, "BATCH_VECTORS", 1)
    state = directory_state(tmp_path)
    write_list(tmp_path / "list.csv", [[f"https://img.example/{n}.jpg", str(n)] for n in range(5_000)], ("url", "id"))
    planned = plan(make_job(manifest=str(tmp_path / "list.csv"), destination=f"file://{tmp_path}/out/"), state)
    rows = [row for ref in planned.chunks for row in chunk_rows(state, ref)]
    outcomes = [make_outcome(row.row_id, key=row.key, id=row.id, size=None if row.id == "7" else 5) for row in rows]
    ledger.append_outcomes(state, outcomes, 1, "c", 0)
    assert export(state, "map", tmp_path / "map.csv") == 5_000
    lines = read(tmp_path / "map.csv")
    assert [line["id"] for line in lines] == [str(n) for n in range(5_000)]
    assert {line["size"] for line in lines} == {"5", ""}
