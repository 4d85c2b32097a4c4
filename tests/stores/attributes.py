"""Eleven objects on moto with everything that S3 keeps beside the bytes, and what is there of it afterwards."""

from __future__ import annotations

import gzip
from typing import Any
from urllib.parse import urlencode

from demo.images import make_image
from demo.s3 import S3Server

IMAGE = make_image("jpeg", 11)
KMS_KEY = "testkey-1"

_EACH: dict[str, dict[str, Any]] = {
    "type": {},
    "headers": {
        "CacheControl": "public, max-age=31536000, immutable",
        "ContentDisposition": 'attachment; filename="a b.jpg"',
        "ContentLanguage": "de-CH",
    },
    "encoding": {"ContentEncoding": "gzip"},
    "metadata": {"Metadata": {"sku": "A 1", "ean-code": "4006381333931", "title": "=?UTF-8?B?Z3LDvG4=?=", "empty": ""}},
    "expires": {"Expires": "Wed, 01 Dec 2027 16:00:00 GMT"},
    "tags": {"Tagging": urlencode({"team": "shop", "a b": "c+d"})},
    "class": {"StorageClass": "STANDARD_IA"},
    "encryption": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KMS_KEY},
    "redirect": {"WebsiteRedirectLocation": "/elsewhere.jpg"},
    "checksum": {"ChecksumAlgorithm": "SHA256"},
}
OBJECTS = {**_EACH, "everything": {name: value for given in _EACH.values() for name, value in given.items()}}

_SHOWN = (
    "ContentType", "CacheControl", "ContentDisposition", "ContentLanguage", "ContentEncoding", "Metadata",
    "ExpiresString", "StorageClass", "ServerSideEncryption", "SSEKMSKeyId", "WebsiteRedirectLocation", "ChecksumSHA256",
)  # fmt: skip


def put_all(s3: S3Server, bucket: str, prefix: str) -> None:
    """Puts the eleven objects, as `NAME.jpg`."""
    for name, given in OBJECTS.items():
        body = gzip.compress(IMAGE, mtime=0) if "ContentEncoding" in given else IMAGE
        s3.client().put_object(
            Bucket=bucket, Key=f"{prefix}{name}.jpg", Body=body, **{"ContentType": "image/jpeg", **given}
        )


def shown(s3: S3Server, bucket: str, key: str) -> dict[str, Any]:
    """Returns an object's bytes, attributes and tags, as boto3 has them."""
    client = s3.client()
    found: dict[str, Any] = {**client.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")}
    tags = client.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
    return {
        **{name: found[name] for name in _SHOWN if name in found},
        "tags": {tag["Key"]: tag["Value"] for tag in tags},
        "bytes": found["Body"].read(),
    }
