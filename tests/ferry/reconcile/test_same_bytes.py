"""Rows with the same bytes, which the end of a run reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from ferry.reconcile.finish import finish_run
from ferry.reconcile.same_bytes import min_rows
from ferry.state.files import DirectoryState
from tasks.reporting.text import Report, same_bytes_note
from tests.servers.odd_s3 import OddS3
from tests.support.helpers import access, directory_state, make_job, run, write_list


def finished(
    origin: Origin, folder: Path, placeholders: int, others: int = 30, **given: Any
) -> tuple[dict[str, Any], DirectoryState, OddS3]:
    """Runs a job in which some addresses return one image, one of them twice; returns the run."""
    lines = [[str(n), origin.add(f"/no-image/{n}.jpg", make_image("jpeg", 0))] for n in range(1, placeholders + 1)]
    lines += [[f"o{n}", origin.add(f"/{n}.jpg", make_image("jpeg", n))] for n in range(1, others + 1)]
    write_list(folder / "list.csv", [*lines, lines[0]], header=("sku", "url"))
    state = directory_state(folder)
    job = make_job(manifest=str(folder / "list.csv"), columns={"id": "sku"}, **given)
    with OddS3() as server:
        server.make_bucket("bucket")
        run(job, state, access(server))
        answer = finish_run(job, state, 1)
    return answer, state, server


def report(answer: dict[str, Any]) -> Report:
    rest: dict[str, Any] = {name: value for name, value in answer.items() if name != "chunk_lines"}
    return Report(**rest, chunks=1, cached=0, limited=False, seconds=1, bytes=1, rate=1, stopped="", why_pending="")


def test_a_placeholder_is_told_of(origin: Origin, tmp_path: Path) -> None:
    """Twelve rows with one image are reported with number, digest, an example and a file, without duplicates."""
    answer, state, _ = finished(origin, tmp_path, 12)
    same = answer["same_bytes"]
    (group,) = same["largest"]
    assert (same["rows"], same["groups"], group["rows"], same["fail"]) == (12, 1, 12, False)
    end = report(answer)
    assert end.exit_code == 0
    assert f"12 rows have the same bytes (digest {group['digest'][:12]}): a placeholder?" in end.message
    assert f"One of them: id {group['id']}, {group['source']}" in end.message
    assert "reports/run-000001/same-bytes.csv" in end.message
    lines = state.read(same["file"]).decode().splitlines()
    assert lines[0] == "sha256_or_md5,id,source,key,size"
    assert {line.split(",")[1] for line in lines[1:]} == {str(n) for n in range(1, 13)}
    assert len(lines) == 13
    assert list(state.spool_dir.glob("*.csv")) == []


def test_nine_rows_may_share_a_picture(origin: Origin, tmp_path: Path) -> None:
    """Nine rows with one image are not reported."""
    answer, state, _ = finished(origin, tmp_path, 9)
    assert answer["same_bytes"] is None
    assert "same bytes" not in report(answer).message
    assert not [name for name in state.list("reports") if "same-bytes" in name]


def test_the_run_fails_where_it_is_to(origin: Origin, tmp_path: Path) -> None:
    """With `duplicate_bodies: fail` the run fails with the reason, and its rows stay copied."""
    answer, _, server = finished(origin, tmp_path, 12, duplicate_bodies="fail")
    end = report(answer)
    assert end.exit_code == 1
    assert "`duplicate_bodies` is `fail`" in end.message
    assert (end.counts["copied"], end.counts["failed"]) == (42, 0)
    assert len(server.stored("bucket", "p/")) == 42


def test_one_address_under_many_keys_is_no_placeholder(origin: Origin, tmp_path: Path) -> None:
    """Rows with one address and the same bytes are not reported."""
    url = origin.add("/one.jpg", make_image("jpeg", 1))
    write_list(tmp_path / "list.csv", [[url, f"{n}.jpg"] for n in range(20)], header=("url", "key"))
    state, job = directory_state(tmp_path), make_job(manifest=str(tmp_path / "list.csv"))
    with OddS3() as server:
        server.make_bucket("bucket")
        run(job, state, access(server))
        assert len(server.stored("bucket", "p/")) == 20
        assert finish_run(job, state, 1)["same_bytes"] is None


@pytest.mark.parametrize(("planned", "rows"), [(0, 10), (300, 10), (10_000, 10), (10_001, 11), (250_000, 250)])
def test_how_many_are_worth_a_word(planned: int, rows: int) -> None:
    """The table of min_rows() holds."""
    assert min_rows(planned) == rows


def test_several_groups_are_one_sentence_each() -> None:
    """The largest group is described, and the others are counted."""
    first = {"digest": "a" * 64, "rows": 120, "id": None, "source": "https://img.example/1.jpg", "key": "1.jpg"}
    same = {"rows": 200, "groups": 3, "largest": [first], "file": "reports/run-000002/same-bytes.csv", "fail": False}
    assert same_bytes_note(same) == (
        "120 rows have the same bytes (digest aaaaaaaaaaaa): a placeholder? One of them: https://img.example/1.jpg. "
        "3 such groups have 200 rows. They are listed in the state's reports/run-000002/same-bytes.csv"
    )
    assert same_bytes_note(None) == ""
