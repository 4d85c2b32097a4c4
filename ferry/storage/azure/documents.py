"""XML documents of Azure Blob Storage that Ferry reads and writes: listings and lists of blocks."""

from __future__ import annotations

import base64
import binascii
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote, unquote, urlencode

from ferry.core import ErrorClass, ObjectError
from ferry.http import printable_header
from ferry.storage.object_info import ObjectInfo
from ferry.storage.provider import Page, Part
from ferry.storage.xml_text import plain_text, value_of

_MONTHS = {
    "Jan": "01", "Feb": "02", "Mar": "03", "Apr": "04", "May": "05", "Jun": "06", "Jul": "07", "Aug": "08",
    "Sep": "09", "Oct": "10", "Nov": "11", "Dec": "12",
}  # fmt: skip


def parse(body: bytes, root: str, side: str) -> ET.Element:
    """Returns the root element of a document that has this name. Raises ObjectError for any other document.

    The service sends no DTD. Ferry refuses a document with one, since its entities may expand without limit.
    """
    try:
        if b"<!DOCTYPE" in body:
            raise ET.ParseError
        found = ET.fromstring(body.strip())  # noqa: S314 - without a DTD there is nothing to expand
        if found.tag == root:
            return found
    except (ET.ParseError, ValueError, LookupError):
        pass
    message = f"the {side}'s response is not a document of Azure Blob Storage. Check `endpoint_url`"
    raise ObjectError(ErrorClass.STORE_ERROR, message)


def parse_page(body: bytes, side: str) -> Page:
    """Returns a page of a listing (REST API: List Blobs). Raises ObjectError for any other document.

    A page without a NextMarker element is not complete: the service sends an empty one on the last page.
    """
    try:
        listed, *blobs = plain_text(body, "EnumerationResults").split("<Blob>")
        end = blobs[-1] if blobs else listed
        if not any(tag in end for tag in ("<NextMarker>", "<NextMarker />", "<NextMarker/>")):
            raise ValueError
        return Page(
            [info for blob in blobs if (info := _info(blob)) is not None], value_of(end, "<NextMarker>") or None
        )
    except ValueError:
        message = f"the {side}'s response is not a listing of Azure Blob Storage. Check `endpoint_url`"
        raise ObjectError(ErrorClass.STORE_ERROR, message) from None


def _info(blob: str) -> ObjectInfo | None:
    """Returns a blob of a listing, or None for a directory of an account with a hierarchical namespace."""
    key = value_of(blob, "<Name>") or unquote(value_of(blob, '<Name Encoded="true">'), errors="strict")
    etag = value_of(blob, "<Etag>")
    if not key or not etag:
        raise ValueError
    if "<ResourceType>directory<" in blob:
        return None
    etag = etag if etag.startswith('"') else f'"{etag}"'  # without quotes in listings, with them everywhere else
    return ObjectInfo(
        key,
        int(value_of(blob, "<Content-Length>")),
        etag,
        date_of(value_of(blob, "<Last-Modified>")),
        md5=md5_of(value_of(blob, "<Content-MD5>")),
        version=etag,
        tier=(value_of(blob, "<AccessTier>") or None) if "<AccessTierInferred>true<" not in blob else None,
    )


def md5_of(value: str | None) -> str | None:
    """Returns the hex digits of a Content-MD5, or None if there is none."""
    try:
        digest = binascii.a2b_base64(value or "")
    except (binascii.Error, ValueError):
        return None
    return digest.hex() if len(digest) == 16 else None


def date_of(value: str | None) -> datetime | None:
    """Returns a date in the form of HTTP (RFC 9110 section 5.6.7: `Tue, 01 Dec 2026 06:00:00 GMT`), or None."""
    text = value or ""
    try:
        return datetime.fromisoformat(f"{text[12:16]}-{_MONTHS[text[8:11]]}-{text[5:7]}T{text[17:25]}Z")
    except (KeyError, ValueError):
        return None


def parse_tags(body: bytes, side: str) -> str:
    """Returns tags as `name=value&...`, percent-encoded (REST API: Get Blob Tags)."""
    found = parse(body, "Tags", side).iter("Tag")
    return urlencode([(tag.findtext("Key") or "", tag.findtext("Value") or "") for tag in found], quote_via=quote)


class Block(NamedTuple):
    """What the ID of a block says: Ferry writes it, and Azure keeps it. 53 bytes; at most 64 are allowed."""

    upload: str  # 16 hex digits
    number: int
    md5: str

    @property
    def id(self) -> str:
        return base64.b64encode(f"{self.upload}{self.number:05d}{self.md5}".encode()).decode()

    @classmethod
    def of(cls, block_id: str) -> Block | None:
        """Returns the block with this ID, or None if another client wrote it."""
        try:
            text = base64.b64decode(block_id, validate=True).decode("ascii")
            return cls(text[:16], int(text[16:21]), text[21:]) if len(text) == 53 else None
        except ValueError:
            return None


def parse_blocks(body: bytes, upload: str, side: str) -> list[Part]:
    """Returns the parts of an upload that Azure holds (REST API: Get Block List, uncommitted)."""
    parts = {}
    for each in parse(body, "BlockList", side).iter("Block"):
        block_id = each.findtext("Name") or ""
        block = Block.of(block_id)
        if block is not None and block.upload == upload:
            parts[block.number] = Part(block.number, int(each.findtext("Size") or 0), block_id, block.md5)
    return [parts[number] for number in sorted(parts)]


def block_list(block_ids: Iterable[str]) -> bytes:
    """Returns the body of Put Block List. `Latest`: a repeated request finds blocks that are committed."""
    named = "".join(f"<Latest>{block_id}</Latest>" for block_id in block_ids)
    return f'<?xml version="1.0" encoding="utf-8"?><BlockList>{named}</BlockList>'.encode()


def blob_info(key: str, headers: Mapping[str, str]) -> ObjectInfo:
    """Returns what a response's header says of a blob. That of a part of a blob has the whole one's size and MD5.

    A tier that the account gives by default is none of the blob's own.
    """
    total = headers.get("Content-Range", "").rpartition("/")[2]
    etag = printable_header(headers.get("ETag"))
    return ObjectInfo(
        key,
        int(total) if total.isdigit() else int(headers.get("Content-Length", "0")),
        etag,
        date_of(headers.get("Last-Modified")),
        md5=md5_of(headers.get("x-ms-blob-content-md5") or (None if total else headers.get("Content-MD5"))),
        version=etag,
        tier=headers.get("x-ms-access-tier") if headers.get("x-ms-access-tier-inferred") != "true" else None,
    )
