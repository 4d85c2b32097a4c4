"""Preflight check of a bucket, and its settings: what Ferry says of the answers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection
from hashlib import sha256

from ferry.core import Fatal, ObjectError, word_of
from ferry.storage.provider import BucketSettings
from ferry.storage.s3 import xml
from ferry.storage.s3.client import Client
from ferry.storage.s3.errors import s3_code

_SIDE = "destination"
_VERSION = "x-amz-version-id"  # S3 API, PutObject: the version that a bucket with versions keeps
_ANY = range(200, 600)


def refusal(status: int, body: bytes, what: str, attributes: Collection[str] = ()) -> str | None:
    """Returns why a bucket cannot be used, as the end of a sentence, or None.

    ``attributes`` are those without which it can be written to.

    | status | of HeadBucket (access) | of CreateMultipartUpload (writing) |
    |---|---|---|
    | 2xx | None | None |
    | 404 | does not exist | does not exist |
    | 401, 403 | refuses access: s3:ListBucket | refuses writing: s3:PutObject |
    | 400 | answered ...: check the region | answered ... |
    | other 4xx, 501, 505, 507 | answered ... | answered ... |
    """
    if status < 300:
        return None
    code = s3_code(body)
    answer = f"HTTP {status}" + (f" {code}" if code else "")
    if attributes:
        names = ", ".join(map(word_of, attributes))
        return f"refuses objects with the attributes that the job sets: {names} ({answer}). Correct or remove them"
    if status == 404:
        return "does not exist. Create it, or correct its address in the job"
    if status in (401, 403):
        right = "s3:ListBucket" if what == "access" else "s3:PutObject"
        return (
            f"refuses {what} with these credentials ({answer}). They need {right}: check `credentials` and the policy"
        )
    if what == "access" and status == 400:
        return f"answered {answer}. Check `region` and the bucket's name"
    return f"answered {answer} to the check of {what}. Check its address and the bucket's settings"


async def bucket_settings(client: Client, key: str, data: bytes) -> BucketSettings:
    """Writes ``key`` and asks for the bucket's settings. Many stores refuse these questions, or do not know them."""
    wrong = b64encode(sha256(b"other bytes").digest()).decode()
    status = (await client.ask("PUT", key, _SIDE, {"x-amz-checksum-sha256": wrong}, data, ok=_ANY)).status
    versioning = await _setting(client, "versioning", "VersioningConfiguration", "Status")
    if versioning is not None:
        versioning = {"Enabled": "on", "Suspended": "suspended"}.get(versioning, "off")
    written = await client.ask("PUT", key, _SIDE, {}, data)
    if written.headers.get(_VERSION, "null") != "null":  # a bucket may keep versions and not say so
        versioning = "on"
    encryption = await _setting(
        client, "encryption", "ServerSideEncryptionConfiguration", "SSEAlgorithm",
        "ServerSideEncryptionConfigurationNotFoundError",
    )  # fmt: skip
    lock = await _setting(
        client, "object-lock", "ObjectLockConfiguration", "ObjectLockEnabled", "ObjectLockConfigurationNotFoundError"
    )
    return BucketSettings(
        checksums=False if status < 300 else True if status == 400 else None,
        versioning=versioning,
        encryption=encryption if encryption is None else encryption or "none",
        object_lock=None if lock is None else lock == "Enabled",
    )


async def _setting(client: Client, name: str, document: str, element: str, absent: str = "") -> str | None:
    """Returns an element's text of a setting of the bucket, such as `versioning`; "" if the setting is absent.

    ``document`` is the name of the response's root element, ``absent`` the error code of a bucket without the setting.
    Returns None if the store does not say: many know few of the settings and answer with something else, or allow these
    questions to the bucket's owner alone.
    """
    try:
        reply = await client.ask("GET", "", _SIDE, query={name: ""}, ok=_ANY)
        if reply.status != 200:
            return "" if absent and s3_code(reply.body) == absent else None
        root = xml.parse_document(reply.body, _SIDE)
    except (ObjectError, Fatal):
        return None
    elements = [(each.tag.rpartition("}")[2], each.text or "") for each in root.iter()]
    return next((text for tag, text in elements if tag == element), "") if elements[0][0] == document else None
