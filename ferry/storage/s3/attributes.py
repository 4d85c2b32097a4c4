"""Attributes of an object as headers of S3, and back, under the names that all providers share (ferry/core)."""

from __future__ import annotations

from collections.abc import Mapping

from ferry.core import HEADERS, KMS_KEY, REDIRECT, TAGS, TIER, from_ascii, in_ascii, one_line

_META = "x-amz-meta-"
_KMS = "x-amz-server-side-encryption"
_TO_S3 = {
    **{name: name.lower() for name in HEADERS}, TIER: "x-amz-storage-class", TAGS: "x-amz-tagging",
    REDIRECT: "x-amz-website-redirect-location", KMS_KEY: f"{_KMS}-aws-kms-key-id",
}  # fmt: skip
_FROM_S3 = {header: name for name, header in _TO_S3.items() if name != KMS_KEY}


def attribute_headers(attributes: Mapping[str, str]) -> dict[str, str]:
    """Returns an object's attributes as request headers: S3's own headers by name, all others as user metadata.

    Metadata is US-ASCII, and the standard headers are sent as UTF-8.
    """
    headers = {}
    for name, value in attributes.items():
        if (header := _TO_S3.get(name)) is not None:
            headers[header] = one_line(value)
        else:
            headers[_META + name.lower()] = in_ascii(value)
    if KMS_KEY in attributes:
        headers[_KMS] = "aws:kms"
    return headers


def attributes_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the object attributes in a response's headers, under their own names."""
    found = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in _FROM_S3:
            found[_FROM_S3[lower]] = value
        elif lower.startswith(_META):
            found[lower[len(_META) :]] = from_ascii(value)
    return found
