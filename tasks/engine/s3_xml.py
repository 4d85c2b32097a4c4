"""The XML documents of the S3 API that Ferry reads: listings, errors and what is said of uploads in parts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote_plus

from tasks.engine.errors import ObjectError, store_status
from tasks.engine.found import Found
from tasks.engine.objects import ErrorClass


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to ListObjectsV2. ``token``: where the next page begins, as the store says it."""

    objects: list[Found]  # with whole keys
    truncated: bool
    token: str | None


def document(body: bytes, side: str) -> ET.Element:
    """The root of an answer's document. Raises ObjectError and Fatal for an <Error> under 200, and for no document.

    S3 documents have no DTD; one that has is refused, since a DTD may define entities that expand without end.
    """
    try:
        if b"<!DOCTYPE" in body:
            raise ET.ParseError
        root = ET.fromstring(body)  # noqa: S314 - without a DTD there is nothing to expand
    except (ET.ParseError, ValueError, LookupError):
        raise ObjectError(ErrorClass.STORE_ERROR, f"the {side}'s answer is not an S3 document") from None
    if _name(root) == "Error":
        raise store_status(200, text(root, "Code") or "", side)
    return root


def page(body: bytes, side: str) -> Page:
    """Raises ObjectError and Fatal, as :func:`document` does; also for another document and an unusable object."""
    root = document(body, side)
    if _name(root) != "ListBucketResult":
        raise ObjectError(ErrorClass.STORE_ERROR, f"the {side}'s answer is not a listing")
    in_url = (text(root, "EncodingType") or "") == "url"
    try:
        objects = [_found(each, in_url=in_url) for each in children(root, "Contents")]
    except (KeyError, ValueError):
        raise ObjectError(ErrorClass.STORE_ERROR, f"the {side}'s listing has an object without key or size") from None
    return Page(objects, text(root, "IsTruncated") == "true", text(root, "NextContinuationToken"))


def _found(contents: ET.Element, *, in_url: bool) -> Found:
    said = {_name(each): each.text or "" for each in contents}
    key = unquote_plus(said["Key"], errors="strict") if in_url else said["Key"]
    modified = said.get("LastModified")
    return Found(
        key, int(said["Size"]), said.get("ETag") or None, datetime.fromisoformat(modified) if modified else None
    )


def children(root: ET.Element, name: str) -> Iterator[ET.Element]:
    return (each for each in root if _name(each) == name)


def text(root: ET.Element, name: str) -> str | None:
    """The text of a child; None where there is none."""
    return next((each.text for each in children(root, name)), None)


def _name(element: ET.Element) -> str:
    """A tag without its namespace: stores differ in those."""
    return element.tag.rpartition("}")[2]
