"""The search for existing objects: ranges that cover every key, and a listing that finds each one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.s3 import S3Server
from ferry.planning import existing_objects as listing
from ferry.planning.existing_objects import existing_pages, key_ranges, marker_before
from ferry.storage.access import Access
from ferry.storage.factory import open_store
from tests.support.helpers import access

TEXT = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1, max_size=6)


@given(keys=st.lists(TEXT, unique=True, max_size=40), per_range=st.integers(1, 9))
def test_each_key_lies_in_one_range(keys: list[str], per_range: int) -> None:
    """Each key is in one range, whose marker lies before it."""
    keys.sort()
    ranges = list(key_ranges(iter(keys), per_range))
    assert len(ranges) == -(-len(keys) // per_range)
    assert [key for _, part in ranges for key in part] == keys
    assert all(after is None or after < part[0] for after, part in ranges)


@given(key=TEXT)
def test_a_marker_lies_before_its_key(key: str) -> None:
    """The marker sorts before its key, since S3 lists the keys after the marker."""
    marker = marker_before(key)
    assert marker is None or marker < key


def fill(s3: S3Server, bucket: str, keys: list[str]) -> None:
    client = s3.client()
    for key in keys:
        client.put_object(Bucket=bucket, Key=f"p/{key}", Body=key.encode())


def look(s3: S3Server, bucket: str, keys: list[str], folder: Path) -> dict[str, int]:
    store = open_store(f"s3://{bucket}/p/", access(s3), folder)
    return {
        found.key: found.size for page in existing_pages(store, sorted(keys)) for found in page if found.key in keys
    }


def test_three_ranges_find_what_is_there(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing by ranges finds each existing key with its size, and no other key."""
    monkeypatch.setattr(listing.key_ranges, "__defaults__", (20,))
    keys = [f"{n:03d}.jpg" for n in range(60)]
    there = keys[::2] + ["000-other.jpg", "zzz.jpg"]
    fill(s3, bucket, there)
    assert look(s3, bucket, keys, tmp_path) == dict.fromkeys(keys[::2], 7)


@pytest.mark.parametrize("per_range", [1, 3, 100])
def test_keys_with_folders_and_signs_are_found(
    per_range: int, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys with characters that sort before `/` are found, whatever order the server lists in."""
    monkeypatch.setattr(listing.key_ranges, "__defaults__", (per_range,))
    keys = ["a-1", "a/1", "a.1", "a0", "a/0", "bb", "a+", "a/-", "Zz", "éé", "~~", "a b", "a/b/c", "a/b-c", "zz😀"]
    fill(s3, bucket, keys)
    assert look(s3, bucket, keys, tmp_path) == {key: len(key.encode()) for key in keys}


def test_nothing_is_wanted(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Without a key to do nothing is listed."""
    fill(s3, bucket, ["a"])
    assert look(s3, bucket, [], tmp_path) == {}


def test_a_directory_is_walked(tmp_path: Path) -> None:
    """A directory is listed completely, since its order is not that of the keys."""
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    for name in ("a/1", "a-1", "b"):
        (out / name).write_text("x")
    store = open_store(f"file://{out}/", Access(), tmp_path)
    assert {f.key for page in existing_pages(store, ["a-1", "a/1"]) for f in page} >= {"a-1", "a/1"}


def test_a_reader_that_gives_up_does_not_hang(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A listing ends when its reader stops reading pages."""
    keys = [f"{n:04d}" for n in range(150)]
    fill(s3, bucket, keys)
    code = f"""
import sys
from pathlib import Path
from ferry.planning import existing_objects as existing
from ferry.storage.access import Access, S3Access
from ferry.storage.factory import open_store
existing.key_ranges.__defaults__ = (1,)
store = open_store("s3://{bucket}/p/", S3Access({s3.endpoint_url!r}, "us-east-1",
    keys=({s3.access_key!r}, {s3.secret_key!r}, None)), Path({str(tmp_path)!r}))
pages = existing.existing_pages(store, {keys!r})
next(pages)
pages.close()
print("closed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=10, check=False)
    assert done.stdout == "closed\n", done.stderr
