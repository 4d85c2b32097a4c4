"""ETags and checksums: the functions of object_info.py."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from ferry.storage.object_info import (
    Sent,
    composite_etag,
    composite_of,
    in_base64,
    md5_of_etag,
    multipart_etag,
    same_etag,
    sha256_of,
)

MD5 = hashlib.md5(b"a").hexdigest()
OTHER = hashlib.md5(b"b").hexdigest()
SHA256 = hashlib.sha256(b"a").hexdigest()


@pytest.mark.parametrize(
    ("etag", "md5", "composite"),
    [
        (None, None, None),
        ("", None, None),
        ('""', None, None),
        ("opaque", None, None),
        (MD5, MD5, None),
        (f'"{MD5.upper()}"', MD5, None),
        (f"{MD5}0", None, None),
        (MD5[1:], None, None),
        (f"{MD5}-2", None, f"{MD5}-2"),
        (f'"{MD5.upper()}-12"', None, f"{MD5}-12"),
        (f"{MD5}-", None, None),
    ],
)
def test_what_an_etag_is(etag: str | None, md5: str | None, composite: str | None) -> None:
    """32 hex digits are an MD5, with a part count a composite ETag, and anything else is neither."""
    assert (md5_of_etag(etag), composite_etag(etag)) == (md5, composite)


def test_an_answer_says_nothing_that_the_store_did_not() -> None:
    """The defaults of Sent claim nothing that the store did not return."""
    assert Sent("x") == Sent("x", None, False, False, False, None, False)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x", "x", True),
        ("x", "X", False),
        ('"x"', "x", True),
        ('W/"x"', '"x"', True),
        ("x", "y", False),
        (MD5, MD5.upper(), True),
        (MD5, f'"{MD5}"', True),
        (MD5, OTHER, False),
        (MD5, "x", False),
        ("x", MD5, False),
        (f"{MD5}-2", f"{MD5}-2", True),
        (f"{MD5}-2", f"{MD5}-3", False),
    ],
)
def test_which_etags_are_the_same(one: str, other: str, same: bool) -> None:
    """Quotes, `W/` and the case of an MD5 make no difference; anything else does."""
    assert same_etag(one, other) is same


def test_a_checksum_is_read_as_it_is_written() -> None:
    """A checksum is base64, as S3 has it, and sha256_of() reverses in_base64()."""
    assert in_base64(SHA256) == base64.b64encode(hashlib.sha256(b"a").digest()).decode()
    assert sha256_of(in_base64(SHA256)) == SHA256


@pytest.mark.parametrize(
    "checksum",
    [
        None, "", "x", SHA256,
        f"{in_base64(SHA256)}-2",  # of parts
        f"{in_base64(SHA256)[:20]}\n{in_base64(SHA256)[20:]}",
        base64.b64encode(hashlib.sha1(b"a").digest()).decode(),
    ],
)  # fmt: skip
def test_what_is_no_in_base64_a_whole_object(checksum: str | None) -> None:
    """A value that is not the SHA-256 of a whole object gives None."""
    assert sha256_of(checksum) is None


def test_the_etag_of_an_upload_in_parts(tmp_path: Path) -> None:
    """The composite ETag is the MD5 of the parts' MD5s and their number, and unknown without MD5s."""
    data = b"ab" * 5
    path = tmp_path / "spooled"
    path.write_bytes(data)
    md5s = [hashlib.md5(data[start : start + 4]) for start in (0, 4, 8)]
    whole = f"{hashlib.md5(b''.join(md5.digest() for md5 in md5s)).hexdigest()}-3"
    etags = [md5.hexdigest() for md5 in md5s]
    assert composite_of(etags) == composite_of([f'"{etag.upper()}"' for etag in etags]) == whole
    assert multipart_etag(path, 4) == whole
    assert composite_of([*etags[:2], "opaque"]) is None
