"""The page of a proof: escaped, without a request to any server, and with the verdict first."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from ferry.core.records import ErrorClass, Status
from ferry.proof.page import rclone_remote, render_page, verdict
from tests.ferry.proof.test_write import copied, forget
from tests.support.page_parser import Page
from tests.support.proofs import prove

BAD = "<script>alert(1)</script>\u202e"


def test_a_page(tmp_path: Path) -> None:
    """Hostile names and messages are text; the verdict, the numbers and the commands are there."""
    job, state, store = copied(tmp_path, failure_budget=1)
    failed = {"status": Status.FAILED, "error_class": ErrorClass.NOT_FOUND, "message": BAD}
    forget(state, "2.jpg", **failed)
    told = prove(job, state, store, sample=1).document
    page = Page(render_page({**told, "job": BAD}))
    assert page.loaded() == []
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>\\u202e") >= 2
    for words in (
        "The proof is complete by a sample",
        "With 95% confidence at most 1 of the 1 rows that were not read have a wrong object.",
        "rclone checksum sha256 manifest-sha256.txt",
        told["digest_of_digests"],
        "not_found",
    ):
        assert words in page.text


@pytest.mark.parametrize(
    ("reasons", "kind", "expected"),
    [
        (["3 rows are pending"], "whole", ("bad", "The proof is incomplete")),
        ([], "whole", ("good", "The proof is complete")),
        ([], "sample", ("warn", "The proof is complete by a sample")),
        ([], "listing", ("warn", "The proof is complete by a listing")),
    ],
)
def test_the_verdict(reasons: list[str], kind: str, expected: tuple[str, str]) -> None:
    """The table of verdict() holds."""
    rows = {"planned": 3, "copied": 3, "unchanged": 0}
    assert verdict({"reasons": reasons, "verification": {"kind": kind}, "rows": rows})[:2] == expected


def test_parts_that_are_there_sometimes(tmp_path: Path) -> None:
    """A refused listing, objects without digests, many groups of failures."""
    job, state, store = copied(tmp_path)
    told: dict[str, Any] = copy.deepcopy(prove(job, state, store).document)
    told["listing"] = {"refused": "AccessDenied"}
    told["objects"] |= {"without_digests": 2, "digests_read_now": 3}
    group = {"error_class": "gone", "status_code": None, "host": "h", "rows": 1, "message": None}
    told["failures"] = [group] * 60
    text = Page(render_page(told)).text
    for words in ("AccessDenied", "2 objects have no digests", "3 objects have digests of this", "10 more groups"):
        assert words in text


@pytest.mark.parametrize(
    ("destination", "remote"),
    [
        ("s3://bucket/p/", "REMOTE:bucket/p"),
        ("s3://bucket/", "REMOTE:bucket"),
        ("az://account/container/p/", "REMOTE:container/p"),
        ("file:///srv/new/", "/srv/new"),
    ],
)
def test_the_remote(destination: str, remote: str) -> None:
    """The table of rclone_remote() holds."""
    assert rclone_remote(destination) == remote
