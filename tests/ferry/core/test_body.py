"""Digests of bodies, and cleanup of the spool directory, whose files may hold unredacted URLs."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from demo.origin import Origin
from ferry.core.body import BodyWriter, Digests, file_body
from ferry.core.errors import UserError
from tasks.run import clean_spool
from tests.support.helpers import directory_state, make_job, plan


def test_a_list_that_was_fetched_is_gone(origin: Origin, tmp_path: Path) -> None:
    """A fetched manifest leaves no spool file, also if the state already has the same manifest."""
    state = directory_state(tmp_path)
    origin.add("/list.csv", b"url\nhttps://img.example/1.jpg?sig=1\n", "text/csv")
    job = make_job(manifest=origin.url("/list.csv"))
    for run_no in (1, 2):
        assert plan(job, state, run_no).rows == 1
        assert list(state.spool_dir.iterdir()) == []


@pytest.mark.parametrize("text", [b"url\nnothing\n", b"url\nhttps://h/1.jpg\nhttps://h/1.jpg?2\n", b"x\n1\n", b""])
def test_a_list_that_was_refused_is_gone(text: bytes, origin: Origin, tmp_path: Path) -> None:
    """A manifest that Ferry rejects leaves no spool file, whatever the reason."""
    state = directory_state(tmp_path)
    origin.add("/list.csv", text, "text/csv")
    with pytest.raises(UserError):
        plan(make_job(manifest=origin.url("/list.csv")), state)
    assert list(state.spool_dir.iterdir()) == []


def test_what_a_killed_run_left_is_gone(tmp_path: Path) -> None:
    """Files of a killed run (bodies, manifests, work files, directories) are deleted; links are not followed."""
    state = directory_state(tmp_path / "s")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").touch()
    spool = state.spool_dir
    (spool / "duckdb-1").mkdir(parents=True)
    (spool / "duckdb-1" / "tmp").touch()
    (spool / "body-link").symlink_to(other)
    for name in ("body-1", "list", "ledger.parquet", "manifest.parquet", "manifest.parquet.unfinished"):
        (spool / name).touch()
    for name in ("manifest.parquet.ids", "ferry-proof-a1", "ferry-public-a1"):
        (spool / name).mkdir()
    (spool / "readings.csv").touch()
    clean_spool(state)
    assert list(spool.iterdir()) == []
    assert (other / "mine").exists()


def test_what_is_not_of_a_run_stays(tmp_path: Path) -> None:
    """Files that Ferry did not write stay: with `state: .` the spool may be the user's own directory."""
    state = directory_state(tmp_path)
    theirs = [
        state.spool_dir / name
        for name in ("photos/a.jpg", "listing.csv", "list.csv", "my-body-1", "proof-1/a", "public-1/a")
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    clean_spool(state)
    assert all(path.exists() for path in theirs)


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 3000, 10_007])
def test_digests_of_parts(size: int, tmp_path: Path) -> None:
    """However a body comes, its parts have the digests of their bytes, and the body those of all."""
    rng = random.Random(size)
    data = rng.randbytes(size)
    writer, at = BodyWriter(tmp_path, 1000), 0
    writer.spool()
    while at < size:
        step = rng.choice([1, 7, 400, 1000, 2500])
        writer.write(data[at : at + step])
        at += step
    body = writer.finish()
    expected = [
        Digests(hashlib.md5(part).hexdigest(), hashlib.sha256(part).hexdigest())
        for part in (data[start : start + 1000] for start in range(0, size, 1000))
    ]
    assert body.parts is not None
    assert body.path is not None
    assert (body.parts.size, body.parts.digests) == (1000, expected)
    assert (body.size, body.md5, body.sha256) == (size, hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest())
    assert file_body(body.path, 1000) == body
    assert file_body(body.path).parts is None
