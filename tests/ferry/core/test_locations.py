"""Addresses in buckets: their parts, names that cannot be, and locations in each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferry.core import Bucket, below, in_bucket, parse_bucket, scheme_of


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("s3://old/images/", ("s3", "", "old", "images/")),
        ("s3://Old_Bucket", ("s3", "", "Old_Bucket", "")),
        ("gs://old", ("gs", "", "old", "")),
        ("gs://x.shop.example/a b/", ("gs", "", "x.shop.example", "a b/")),
        (f"gs://{'a' * 63}.{'b' * 63}/", ("gs", "", f"{'a' * 63}.{'b' * 63}", "")),
        ("az://shop/old", ("az", "shop", "old", "")),
        ("az://shop/old/a?b#c/1%2F.jpg ", ("az", "shop", "old", "a?b#c/1%2F.jpg ")),
        ("az://shop/$web/x", ("az", "shop", "$web", "x")),
        ("az://shop/old//x", ("az", "shop", "old", "/x")),
    ],
)
def test_parts(address: str, parts: tuple[str, str, str, str]) -> None:
    """A key is raw text: what a URL would give a meaning is a part of it."""
    assert parse_bucket(address) == Bucket(*parts)
    assert in_bucket(address)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("file:///srv", "is none of"),
        ("GS://bucket/", "is none of"),
        ("gs:/bucket/", "is none of"),
        ("bucket", "is none of"),
        ("s3:///p", "names no bucket: `s3://bucket/`"),
        ("gs://", "names no bucket: `gs://bucket/`"),
        ("gs://Images/", "has no valid bucket"),
        ("gs://b/", "has no valid bucket"),
        ("gs://-images/", "has no valid bucket"),
        ("gs://images /", "has no valid bucket"),
        ("gs://img..shop/", "has no valid bucket"),
        (f"gs://{'a' * 64}/", "has no valid bucket"),
        (f"gs://{'a.' * 111}b/", "has no valid bucket"),
        ("az://", "has no valid account"),
        ("az:///images/", "has no valid account"),
        ("az://Shop/images/", "has no valid account"),
        ("az://shop.blob.core.windows.net/images/", "has no valid account"),
        ("az://shop", "names no container after the account"),
        ("az://shop/", "names no container after the account"),
        ("az://shop//images/", "names no container after the account"),
        ("az://shop/Images/", "has no valid container"),
        ("az://shop/a--b/", "has no valid container"),
        ("az://shop/ab/", "has no valid container"),
        ("az://shop/$images/", "has no valid container"),
        ("az://shop/images /", "has no valid container"),
    ],
)
def test_names_that_cannot_be(address: str, problem: str) -> None:
    """They are refused with the provider's rule."""
    with pytest.raises(ValueError, match=problem.replace("$", r"\$")):
        parse_bucket(address)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [("gs://b/", "gs"), ("GS:/b", "gs"), ("https://h/", "https"), ("list.csv", ""), ("a/b:c/d", ""), ("c:/list", "")],
)
def test_schemes(text: str, scheme: str) -> None:
    """Also that of an address with one slash, but not the drive of a path."""
    assert scheme_of(text) == scheme


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("az://shop/old/images/state", "state"),
        ("az://shop/old/images", ""),
        ("az://shop/old/images2/state", None),
        ("az://other/old/images/state", None),
        ("gs://shop/old/images/state", None),
        ("s3://shop/old/images/state", None),
    ],
)
def test_one_address_below_another(location: str, path: str | None) -> None:
    """Only in the same container of the same account of the same provider."""
    assert below("az://shop/old/images/", location) == path


def test_a_bucket_is_not_a_directory(tmp_path: Path) -> None:
    """A directory whose name is that of a bucket is another location."""
    assert below("gs://bucket", str(tmp_path / "gs:" / "bucket")) is None


def test_one_directory_below_another(tmp_path: Path) -> None:
    """By its real path, and by every name that it has."""
    (tmp_path / "a b" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a b")
    assert below(f"file://{tmp_path}/a%20b/", str(tmp_path / "link" / "deep")) == "deep"
    assert below(str(tmp_path / "link"), f"file://{tmp_path}/a%20b") == ""
    assert below(str(tmp_path / "a b"), str(tmp_path / "a b2")) is None
    assert below(str(tmp_path), f"s3://bucket{tmp_path}") is None
