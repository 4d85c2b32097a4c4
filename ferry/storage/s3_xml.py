"""The XML documents of the S3 API that Ferry reads: listings, errors and what is said of uploads in parts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, unquote_plus
from xml.sax.saxutils import escape

from ferry.core import ErrorClass, Fatal, ObjectError
from ferry.storage.errors import s3_code, store_status
from ferry.storage.object_info import ObjectInfo


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to ListObjectsV2. ``token``: where the next page begins, as the store says it."""

    objects: list[ObjectInfo]  # with whole keys
    truncated: bool
    token: str | None


def document(body: bytes, side: str) -> ET.Element:
    """The root of an answer's document. Raises ObjectError and Fatal for an <Error> under 200, and for no document.

    S3 documents have no DTD; one that has is refused, since a DTD may define entities that expand without end.
    """
    try:
        if b"<!DOCTYPE" in body:
            raise ET.ParseError
        root = ET.fromstring(body.strip())  # noqa: S314 - without a DTD there is nothing to expand
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


def _found(contents: ET.Element, *, in_url: bool) -> ObjectInfo:
    said = {_name(each): each.text or "" for each in contents}
    key = unquote_plus(said["Key"], errors="strict") if in_url else said["Key"]
    modified = said.get("LastModified")
    return ObjectInfo(
        key, int(said["Size"]), said.get("ETag") or None, datetime.fromisoformat(modified) if modified else None
    )


def children(root: ET.Element, name: str) -> Iterator[ET.Element]:
    return (each for each in root if _name(each) == name)


def text(root: ET.Element, name: str) -> str | None:
    """The text of a child; None where there is none."""
    return next((each.text for each in children(root, name)), None)


def begun(body: bytes, side: str) -> str:
    """The ID of the upload in parts that this answer says was begun (S3 API: CreateMultipartUpload)."""
    upload_id = text(document(body, side), "UploadId")
    if not upload_id:
        raise ObjectError(ErrorClass.STORE_ERROR, f"the {side} began an upload and did not say which")
    return upload_id


def upload_gone(body: bytes, side: str) -> ObjectError | Fatal:
    """The error for a 404 in an upload in parts that was begun. NoSuchUpload: another client ended it, or a rule of the
    bucket; nothing is wrong with the bucket."""
    code = s3_code(body)
    if code == "NoSuchUpload":
        text = f"the {side} has no such upload any more (HTTP 404 NoSuchUpload): another client or a rule ended it"
        return ObjectError(ErrorClass.STORE_ERROR, text, status_code=404)
    return store_status(404, code, side)


def parts(etags: Iterable[str]) -> bytes:
    """What ends an upload whose parts have these ETags (S3 API: CompleteMultipartUpload)."""
    named = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>".encode()


def in_query(value: str) -> str:
    """A value as it stands in a signed query."""
    return quote(value, safe="~")


def _name(element: ET.Element) -> str:
    """A tag without its namespace: stores differ in those."""
    return element.tag.rpartition("}")[2]
