"""The page of a proof for people: the verdict first, then the numbers, and how to check it without Ferry."""

from __future__ import annotations

from typing import Any

from ferry.core import in_bucket, parse_bucket, size
from ferry.pages import render

SHOWN_FAILURES = 50  # groups; failures.csv has each row
KINDS = {
    "whole": "every object was read and compared",
    "sample": "a random sample of the objects was read and compared",
    "listing": "sizes and ETags of a listing were compared; no object was read",
}
CONFIRMED = {
    "read_back": "the bytes were read from the destination, and their digest is the ledger's",
    "digest": "the store's answer to the upload had the digest of the bytes that Ferry sent",
    "size": "the size alone, or an ETag that is not a digest",
}
STATUSES = {
    "copied": "Ferry wrote the object",
    "unchanged": "the destination had the object already",
    "skipped": "nothing to do: duplicate rows, and objects that the job leaves as they are",
    "failed": "no object: see the failures",
    "pending": "still to do",
}


def render_page(told: dict[str, Any]) -> str:
    """Returns the page of a proof's document as HTML."""
    return render(
        "ferry.proof",
        "proof.html",
        told=told,
        verdict=verdict(told),
        sample=sample_words(told["verification"]),
        kinds=KINDS,
        confirmed=CONFIRMED,
        statuses=STATUSES,
        failures=told["failures"][:SHOWN_FAILURES],
        more=len(told["failures"]) - SHOWN_FAILURES,
        remote=rclone_remote(told["destination"]),
        moved=size(told["objects"]["bytes"]),
    )


def verdict(told: dict[str, Any]) -> tuple[str, str, list[str]]:
    """Returns kind, sentence and details of the verdict.

    | verdict | verification | kind |
    |---|---|---|
    | incomplete | any | bad |
    | complete | whole | good |
    | complete | sample, listing | warn |
    """
    if told["reasons"]:
        return "bad", "The proof is incomplete", told["reasons"]
    kind, done = told["verification"]["kind"], told["rows"]["copied"] + told["rows"]["unchanged"]
    return (
        "good" if kind == "whole" else "warn",
        "The proof is complete" if kind == "whole" else f"The proof is complete by a {kind}",
        [f"{done:,} of {told['rows']['planned']:,} rows have their object at the destination: {KINDS[kind]}."],
    )


def sample_words(verification: dict[str, Any]) -> list[str]:
    """Returns sentences on what a sample may have missed; none for another verification."""
    if "sample" not in verification:
        return []
    sample = verification["sample"]
    return [
        f"With {level} confidence at most {missed:,} of the {sample['not_read']:,} rows that were not read "
        "have a wrong object."
        for level, missed in sample["wrong_at_most"].items()
    ]


def rclone_remote(destination: str) -> str:
    """Returns what follows `data=` in the command of rclone.

    | destination | remote |
    |---|---|
    | `s3://bucket/p/` | `REMOTE:bucket/p` |
    | `az://account/container/p/` | `REMOTE:container/p` |
    | `file:///srv/new/` | `/srv/new` |
    """
    if not in_bucket(destination):
        return destination.removeprefix("file://").rstrip("/")
    bucket = parse_bucket(destination)
    return f"REMOTE:{bucket.name}/{bucket.path}".rstrip("/")
