"""Decisions about existing objects."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ferry.core.records import Reason, Row
from ferry.job.model import OnExisting
from ferry.ratelimit.permit import host_of
from ferry.storage.object_info import ObjectInfo
from ferry.transfer.conflict import after_fetch, before_fetch, policy_for
from tests.support.helpers import make_row

P = OnExisting
MD5, OTHER = "a" * 32, "b" * 32
LEAVING = (P.SKIP_SAME, P.SKIP, P.FAIL)


def found(etag: str | None = f'"{MD5}"', size: int = 10) -> ObjectInfo:
    return ObjectInfo("k", size, etag, None)


def row(source: str = "https://h/x", **given: Any) -> Row:
    return make_row(1, source, **given)


@pytest.mark.parametrize("policy", P)
def test_nothing_there_is_fetched(policy: OnExisting) -> None:
    """Without an existing object the row is fetched under any policy."""
    assert before_fetch(policy, row(md5=MD5), None) == "fetch"


def test_overwrite_always_fetches() -> None:
    """With `overwrite` the row is fetched even if the object is the same."""
    assert before_fetch(P.OVERWRITE, row(md5=MD5, size=10), found()) == "fetch"


SAME: list[tuple[Row, ObjectInfo]] = [
    (row(md5=MD5), found()),
    (row(md5=MD5, size=10), found()),
    (row(md5=MD5), found(MD5)),
    (row("s3://old/x", etag=f'"{MD5}"'), found()),
    (row("s3://old/x", etag=MD5, size=10), found()),
]
NOT_PROVED: list[tuple[Row, ObjectInfo]] = [
    (row(), found()),
    (row(size=10), found()),  # sameness of size proves nothing
    (row(size=11), found()),
    (row(md5=OTHER), found()),
    (row(md5=MD5, size=11), found()),
    (row(md5=MD5), found(f'"{MD5}-2"')),
    (row(md5=MD5), found(None)),
    (row(), found(None)),
    (row("https://h/x", etag=f'"{MD5}"'), found()),  # an HTTP origin's ETag is no MD5
    (row("s3://old/x", etag=f'"{MD5}-3"'), found(f'"{MD5}-3"')),  # composite: not of bytes alone
    (row("s3://old/x", etag=f'"{MD5}"', md5=OTHER), found()),
    (row("s3://old/x", etag=f'"{OTHER}"'), found()),
    (row(sha256="c" * 64), found()),
    (row(md5=MD5, sha256="c" * 64), found()),  # a digest that is named is compared, and the store has no SHA-256
]


@pytest.mark.parametrize(("policy", "case"), [*itertools.product(LEAVING, SAME)])
def test_proved_sameness_is_unchanged(policy: OnExisting, case: tuple[Row, ObjectInfo]) -> None:
    """An object whose ETag proves the same bytes is unchanged without a download."""
    assert before_fetch(policy, *case) == "unchanged"


@pytest.mark.parametrize("case", NOT_PROVED)
def test_without_proof_skip_skips_and_others_look(case: tuple[Row, ObjectInfo]) -> None:
    """Without a proof `skip` keeps the object, and the other policies fetch the row."""
    assert before_fetch(P.SKIP, *case) == "skip"
    assert before_fetch(P.SKIP_SAME, *case) == "fetch"
    assert before_fetch(P.FAIL, *case) == "fetch"


@pytest.mark.parametrize(
    ("policy", "same", "other"),
    [
        (P.SKIP_SAME, "unchanged", "put"),
        (P.SKIP, "unchanged", "skip"),
        (P.FAIL, "unchanged", "exists"),
        (P.OVERWRITE, "put", "put"),
    ],
)
def test_after_the_fetch(policy: OnExisting, same: str, other: str) -> None:
    """The table of after_fetch() holds."""
    assert after_fetch(policy, True) == same
    assert after_fetch(policy, False) == other


@pytest.mark.parametrize(
    ("reason", "attempt", "written_again"),
    [(Reason.REPAIR, 2, True), (Reason.REPAIR, 1, False), (Reason.NEW, 1, False), (Reason.CHANGED, 2, False)],
)
@pytest.mark.parametrize("policy", P)
def test_what_verify_found_altered_is_written_again(
    policy: OnExisting, reason: Reason, attempt: int, written_again: bool
) -> None:
    """A repair overwrites under any policy, except one of attempt 1."""
    expected = P.OVERWRITE if written_again else policy
    assert policy_for(policy, row(reason=reason, attempt=attempt)) is expected


@pytest.mark.parametrize(
    ("source", "host"),
    [
        ("https://Img.Example/x/y", "img.example"),
        ("http://h.example:8080/x", "h.example:8080"),
        ("https://h.example", "h.example"),
        ("https://h.example?x=//other/", "h.example"),
        ("https://h.example#f", "h.example"),
        ("https://[::1]:80/x", "[::1]:80"),
        ("s3://bucket/key/with@sign", "bucket"),
        ("gs://my_bucket/a?b/with@sign", "my_bucket"),
        ("az://shop/container/key/with@sign", "shop"),
        ("file:///srv/x", ""),
    ],
)
def test_whose_limit_a_source_counts_for(source: str, host: str) -> None:
    """A source counts for its host and port in lower case, for its bucket, or for its account at Azure."""
    assert host_of(source) == host
