"""XML documents of the S3 API that Ferry reads and writes: listings, errors and multipart uploads."""

from __future__ import annotations

import contextlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from datetime import datetime
from urllib.parse import quote, unquote_plus, urlencode
from xml.sax.saxutils import escape

from ferry.core import ErrorClass, Fatal, ObjectError
from ferry.storage.object_info import ObjectInfo, md5_of_etag
from ferry.storage.provider import Page, Part
from ferry.storage.s3.errors import s3_code, store_status
from ferry.storage.xml_text import plain_text, value_of

# Ceph RGW 16, moto and rclone repeat start-after as it is, so that XML 1.0 does not allow its control characters.
_START_AFTER = re.compile(rb"<StartAfter>.*?</StartAfter>", re.DOTALL)


def parse_document(body: bytes, side: str) -> ET.Element:
    """Returns the root element of a response. Raises ObjectError or Fatal for an <Error> or an invalid document.

    S3 documents have no DTD. Ferry refuses a document with one, since its entities may expand without limit.
    """
    try:
        if b"<!DOCTYPE" in body:
            raise ET.ParseError
        root = ET.fromstring(body.strip())  # noqa: S314 - without a DTD there is nothing to expand
    except (ET.ParseError, ValueError, LookupError):
        message = f"the {side}'s response is not an S3 document. Check `endpoint_url`"
        raise ObjectError(ErrorClass.STORE_ERROR, message) from None
    if _name(root) == "Error":
        raise store_status(200, text(root, "Code") or "", side)
    return root


def parse_page(body: bytes, side: str) -> Page:
    """Returns a listing's page. Raises ObjectError and Fatal as :func:`parse_document` does.

    Also raises ObjectError for another kind of document, and for an object without a valid key or size. The usual page,
    without prefixes and attributes, is read as text; any other one, also a wrong one, as a tree.
    """
    body = _START_AFTER.sub(b"", body).strip()
    with contextlib.suppress(ValueError):
        return _plain_page(body)
    root = parse_document(body, side)
    if _name(root) != "ListBucketResult":
        raise ObjectError(ErrorClass.STORE_ERROR, f"the {side}'s response is not a listing. Check `endpoint_url`")
    in_url = (text(root, "EncodingType") or "") == "url"
    try:
        objects = [_object_info(each, in_url=in_url) for each in children(root, "Contents")]
    except (KeyError, ValueError):
        message = f"the {side}'s listing has an object without a valid key or size"
        raise ObjectError(ErrorClass.STORE_ERROR, message) from None
    return Page(objects, text(root, "NextContinuationToken") or "" if text(root, "IsTruncated") == "true" else None)


def _plain_page(body: bytes) -> Page:
    """Returns a listing's page. Raises ValueError for a document that must be read in another way."""
    if b"<Contents " in body or b"<Contents/" in body or body.count(b"Contents>") != 2 * body.count(b"<Contents>"):
        raise ValueError
    page = plain_text(body, "ListBucketResult")
    in_url = value_of(page, "<EncodingType>") == "url"
    listed = page.split("<Contents>")[1:]
    objects = [_plain_info(each.partition("</Contents>")[0], in_url=in_url) for each in listed]
    return Page(
        objects, value_of(page, "<NextContinuationToken>") if value_of(page, "<IsTruncated>") == "true" else None
    )


def _plain_info(contents: str, *, in_url: bool) -> ObjectInfo:
    key, modified = value_of(contents, "<Key>"), value_of(contents, "<LastModified>")
    if not key:
        raise ValueError
    return ObjectInfo(
        unquote_plus(key, errors="strict") if in_url else key,
        int(value_of(contents, "<Size>")),
        value_of(contents, "<ETag>") or None,
        datetime.fromisoformat(modified) if modified else None,
        tier=value_of(contents, "<StorageClass>") or None,
    )


def parse_parts(body: bytes, side: str) -> tuple[list[Part], bool]:
    """Returns the parts in a response to ListParts, and whether there are more. Raises as :func:`parse_document`."""
    root = parse_document(body, side)
    try:
        parts = [
            Part(int(text(each, "PartNumber") or ""), int(text(each, "Size") or ""), etag, md5_of_etag(etag))
            for each in children(root, "Part")
            if (etag := text(each, "ETag") or "")
        ]
    except ValueError:
        message = f"the {side}'s list of parts has one without a valid number or size"
        raise ObjectError(ErrorClass.STORE_ERROR, message) from None
    return parts, text(root, "IsTruncated") == "true"


def _object_info(contents: ET.Element, *, in_url: bool) -> ObjectInfo:
    fields = {_name(each): each.text or "" for each in contents}
    key = unquote_plus(fields["Key"], errors="strict") if in_url else fields["Key"]
    modified = fields.get("LastModified")
    date = datetime.fromisoformat(modified) if modified else None
    etag, tier = fields.get("ETag") or None, fields.get("StorageClass") or None
    return ObjectInfo(key, int(fields["Size"]), etag, date, tier=tier)


def parse_tags(body: bytes, side: str) -> str:
    """Returns the tags in a response to GetObjectTagging as `name=value&...`, percent-encoded."""
    sets = children(parse_document(body, side), "TagSet")
    return urlencode([(text(tag, "Key") or "", text(tag, "Value") or "") for each in sets for tag in each])


def children(root: ET.Element, name: str) -> Iterator[ET.Element]:
    """Returns the child elements with this tag, in any namespace."""
    return (each for each in root if _name(each) == name)


def text(root: ET.Element, name: str) -> str | None:
    """Returns the text of the first child with this tag, or None if there is none."""
    return next((each.text for each in children(root, name)), None)


def upload_id(body: bytes, side: str) -> str:
    """Returns the upload ID in a response to CreateMultipartUpload. Raises ObjectError if it has none."""
    found = text(parse_document(body, side), "UploadId")
    if not found:
        raise ObjectError(ErrorClass.STORE_ERROR, f"the {side} created a multipart upload but returned no upload ID")
    return found


def upload_missing(body: bytes, side: str) -> ObjectError | Fatal:
    """Returns the error for a 404 to a request of a multipart upload.

    NoSuchUpload means that another client or a lifecycle rule ended the upload. The bucket itself is fine.
    """
    code = s3_code(body)
    if code == "NoSuchUpload":
        message = f"the {side} answered HTTP 404 NoSuchUpload: another client or a lifecycle rule ended the upload"
        return ObjectError(ErrorClass.STORE_ERROR, message, status_code=404)
    return store_status(404, code, side)


def complete_document(etags: Iterable[str]) -> bytes:
    """Returns the request body for CompleteMultipartUpload from the parts' ETags, in order."""
    named = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>".encode()


def query_value(value: str) -> str:
    """Returns a value percent-encoded for a signed query."""
    return quote(value, safe="~")


def _name(element: ET.Element) -> str:
    """Returns the tag without its namespace, which differs between stores."""
    return element.tag.rpartition("}")[2]
