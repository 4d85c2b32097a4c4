"""Objects as the JSON API describes them, and the bodies of requests that write them."""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ferry.core import HEADERS, HOLDS, TIER, WORDS, ErrorClass, ObjectError
from ferry.http import Upload, media_type, printable_header
from ferry.storage.object_info import ObjectInfo, Sent, in_base64
from ferry.storage.provider import Page

SENT = "md5Hash,etag,generation"  # of the answer to a write
INFO = "name,size,md5Hash,crc32c,etag,updated,generation,storageClass"
ATTRIBUTES = "contentType,cacheControl,contentDisposition,contentEncoding,contentLanguage,metadata"
_FIELDS = {
    "Cache-Control": "cacheControl",
    "Content-Disposition": "contentDisposition",
    "Content-Encoding": "contentEncoding",
    "Content-Language": "contentLanguage",
    "Content-Type": "contentType",
    TIER: "storageClass",
}
_LEGACY = ("MULTI_REGIONAL", "REGIONAL", "DURABLE_REDUCED_AVAILABILITY")  # equivalent to STANDARD ("Storage classes")
_BAD_KEY = re.compile(r"[\r\n]|\A\.{1,2}\Z|\A\.well-known/acme-challenge/")
MAX_KEY_BYTES = 1024

Resource = dict[str, Any]


def parse(body: bytes, side: str) -> Resource:
    """Returns a JSON object. Raises ObjectError for any other body."""
    try:
        found = json.loads(body)
        if isinstance(found, dict):
            return found
    except (ValueError, RecursionError):
        pass
    message = f"the {side}'s response is not one of Google Cloud Storage's JSON API. Check `endpoint_url`"
    raise ObjectError(ErrorClass.STORE_ERROR, message)


def page_of(resource: Resource, side: str, after: str | None) -> Page:
    """Returns a page of a listing, without the key ``after``: startOffset includes it."""
    items, token = resource.get("items", []), resource.get("nextPageToken")
    if not isinstance(items, list) or not isinstance(token, str | None):
        raise _malformed(side)
    return Page([info for item in items if (info := info_of(item, side)).key != after], token or None)


def info_of(resource: Any, side: str) -> ObjectInfo:
    """Returns what the resource of an object says. Raises ObjectError without a valid name or size."""
    try:
        updated = resource.get("updated")
        return ObjectInfo(
            str(resource["name"]),
            int(resource["size"]),
            etag_of(md5_of(resource.get("md5Hash")), resource.get("etag")),
            datetime.fromisoformat(updated) if updated else None,
            md5=md5_of(resource.get("md5Hash")),
            version=resource.get("generation"),
            tier=_tier_of(resource.get("storageClass")),
            crc32c=resource.get("crc32c"),
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        raise _malformed(side) from None


def _malformed(side: str) -> ObjectError:
    return ObjectError(ErrorClass.STORE_ERROR, f"the {side}'s response has an object without a valid name or size")


def sent_of(resource: Resource, *, in_parts: bool = False, lost: tuple[str, ...] = ()) -> Sent:
    """Returns the response to a write. It has no MD5 for some objects: then the bytes are read back."""
    md5 = md5_of(resource.get("md5Hash"))
    return Sent(
        etag_of(md5, resource.get("etag")), md5=md5, version=resource.get("generation"), in_parts=in_parts, lost=lost
    )


def etag_of(md5: str | None, etag: str | None) -> str | None:
    """Returns the ETag as Google's XML API has it: the MD5, and for an object without one an opaque text.

    So an ETag of Google says the same as one of S3. The JSON API's changes with each change of the metadata.
    """
    return f'"{md5}"' if md5 else printable_header(etag) or None


def md5_of(value: str | None) -> str | None:
    """Returns the hex digits of an md5Hash, or None for an object without one: composed of others."""
    try:
        digest = binascii.a2b_base64(value or "")
    except ValueError:
        return None
    return digest.hex() if len(digest) == 16 else None


def attributes_of(resource: Resource) -> dict[str, str]:
    """Returns the attributes of an object, under their own names.

    Metadata whose name begins with a colon gets one more: that name is not one of Ferry's own.
    """
    headers = {name: resource[field] for name, field in _FIELDS.items() if field in resource}
    if TIER in headers:
        headers[TIER] = _tier_of(headers[TIER])
    metadata = resource.get("metadata") or {}
    return {**{_metadata_name(name): value for name, value in metadata.items()}, **headers}


def _tier_of(storage_class: str | None) -> str | None:
    return "STANDARD" if storage_class in _LEGACY else storage_class


def _metadata_name(name: str) -> str:
    return f":{name}" if name.startswith(":") else name.lower() if name in HEADERS else name


def resource_of(key: str, attributes: Mapping[str, str], md5: str | None) -> tuple[bytes, str | None, tuple[str, ...]]:
    """Returns the resource to be written, its content type, and the names of attributes that it cannot hold.

    With ``md5`` (hex digits) the server refuses other bytes. The encryption key is a parameter of the request. The
    content type is also a header, which Google compares. Raises ObjectError (BAD_KEY).
    """
    check_key(key)
    resource: Resource = {"name": key}
    metadata, lost = {}, []
    for name, value in attributes.items():
        field = _FIELDS.get(name)
        if field == "contentType" and media_type(value) is None:
            lost.append(name)
        elif field is not None:
            resource[field] = value
        elif name not in HEADERS and name not in WORDS:
            metadata[name] = value
        elif name not in HOLDS["gs"].names:
            lost.append(name)
    if metadata:
        resource["metadata"] = metadata
    if md5 is not None:
        resource["md5Hash"] = in_base64(md5)
    return json.dumps(resource).encode(), resource.get("contentType"), tuple(lost)


def check_key(key: str) -> None:
    """Raises ObjectError (BAD_KEY) for a name that Google does not allow ("About Cloud Storage objects")."""
    if _BAD_KEY.search(key) or len(key.encode()) > MAX_KEY_BYTES:
        rule = f"{MAX_KEY_BYTES:,} bytes at most, no line ends, not `.`, `..` or below `.well-known/acme-challenge/`"
        raise ObjectError(ErrorClass.BAD_KEY, f"Google Cloud Storage does not accept this key. Its rule: {rule}")


class Related:
    """A spooled body between two parts of a request's body (multipart/related)."""

    def __init__(self, before: bytes, data: Upload, after: bytes) -> None:
        self._before, self._data, self._after = before, data, after
        self._ends = len(before) + len(data)

    def __len__(self) -> int:
        return self._ends + len(self._after)

    async def read(self, offset: int) -> bytes:
        if offset < len(self._before):
            return self._before[offset:]
        if offset < self._ends:
            return await self._data.read(offset - len(self._before))
        return self._after[offset - self._ends :]


class Rest:
    """A body from ``start`` on."""

    def __init__(self, data: Upload, start: int) -> None:
        self._data, self._start = data, start

    def __len__(self) -> int:
        return len(self._data) - self._start

    async def read(self, offset: int) -> bytes:
        return await self._data.read(self._start + offset)
