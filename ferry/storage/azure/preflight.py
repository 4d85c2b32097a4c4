"""Preflight check of a container: the rights that Ferry needs, and what is said of one that is missing."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from ferry.core import TAGS, word_of
from ferry.http import Response
from ferry.storage.azure.attributes import attribute_headers
from ferry.storage.azure.errors import meaning
from ferry.storage.azure.keys import Authority
from ferry.storage.errors import Meaning
from ferry.storage.provider import BucketSettings

_LETTERS = "`r`, `l` and, to write, `w`"
Headers = Mapping[str, str]
_NO_SUCH_ETAG = '"0x0"'

# What is needed of a container, by the letters of a SAS of which one is enough, and by a built-in role.
RIGHTS = {
    "list": ("l", "Storage Blob Data Reader"),
    "read": ("r", "Storage Blob Data Reader"),
    "write": ("wc", "Storage Blob Data Contributor"),
    "write tags": ("t", "Storage Blob Data Owner"),
}


def lasting_refusal(authority: Authority, rights: Collection[str]) -> str | None:
    """Returns why credentials cannot be used, by what they say of themselves, as the end of a sentence, or None."""
    if missing := authority.lacks({RIGHTS[right][0]: right for right in rights}):
        letters = f"{_LETTERS}, and for tags `t`" if "write tags" in rights else _LETTERS
        return f"cannot be used with this SAS, which lacks {' and '.join(missing)}. Make one with all of {letters}"
    if authority.ends_at is not None and authority.ends_at <= datetime.now(UTC):
        end = f"{authority.ends_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        return f"cannot be used with this SAS, which ended at {end}. Make another one"
    return None


def refusal(status: int, code: str, right: str, attributes: Collection[str] = ()) -> str | None:
    """Returns why a container cannot be used, as the end of a sentence, or None.

    ``attributes`` are those without which it can be written to.

    | answer | the container |
    |---|---|
    | 2xx, 412, 404 BlobNotFound | can be used |
    | ContainerNotFound, ... | does not exist |
    | AuthenticationFailed, AccountIsDisabled, ... | refuses the credentials |
    | other 401, 403 | refuses this right |
    | any other | answered ... |
    """
    answer = f"HTTP {status} {code}".rstrip()
    means = meaning(status, code)
    if status < 300 or status == 412 or means is Meaning.NO_OBJECT:
        return None
    if attributes:
        names = ", ".join(map(word_of, attributes))
        letters, role = RIGHTS["write tags"]
        hint = f"; tags need `{letters}` in a SAS or the role {role}" if TAGS in attributes else ""
        return f"refuses blobs with the attributes that the job sets: {names} ({answer}). Correct or remove them{hint}"
    if means is Meaning.NO_BUCKET:
        return "does not exist. Create it, or correct its address in the job"
    if means is Meaning.CREDENTIALS:
        return f"refuses these credentials ({answer}). Check them, the account and this machine's clock"
    letters, role = RIGHTS[right]
    if means is Meaning.REFUSED:
        return (
            f"refuses to {right} with these credentials ({answer}). They need `{letters[0]}` in a SAS or the role "
            f"{role}, and the account's network rules must allow this machine"
        )
    return f"answered {answer} to the check whether Ferry may {right}. Check its address and its settings"


class Probe(NamedTuple):
    """A request that needs one right, and changes nothing."""

    right: str
    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    data: bytes | None
    attributes: Collection[str] = ()


def probes(prefix: str, *, writing: bool, attributes: Mapping[str, str] = {}) -> Iterator[Probe]:
    """Returns the requests that try the rights. The last ones write to a version that no blob can have.

    ``attributes``: what each blob is to have. They are tried after the right to write, so that their refusal is theirs.
    """
    key = f"{prefix}/.ferry-preflight-{secrets.token_hex(8)}".lstrip("/")
    query = {"restype": "container", "comp": "list", "prefix": prefix, "maxresults": "1"}
    yield Probe("list", "GET", "", query, {}, None)
    yield Probe("read", "HEAD", key, {}, {}, None)
    if writing:
        headers = {"x-ms-blob-type": "BlockBlob", "if-match": _NO_SUCH_ETAG}
        yield Probe("write", "PUT", key, {}, headers, b"")
        if attributes:
            right = "write tags" if TAGS in attributes else "write"
            yield Probe(right, "PUT", key, {}, {**headers, **attribute_headers(attributes)[0]}, b"", tuple(attributes))


async def container_settings(
    answer: Callable[[str, str, Headers, Headers, bytes | None], Awaitable[Response]],
    key: str,
    data: bytes,
) -> BucketSettings:
    """Returns what a container says of itself (Get Container Properties), also by writing ``data`` with another MD5.

    ``answer`` sends a request and returns its response, read: method, key, query, headers and body.
    """
    wrong = {"x-ms-blob-type": "BlockBlob", "content-md5": base64.b64encode(bytes(16)).decode()}
    refused = await answer("PUT", key, {}, wrong, data)
    found = await answer("HEAD", "", {"restype": "container"}, {}, None)
    lock = found.headers.get("x-ms-has-immutability-policy") if found.status == 200 else None
    return BucketSettings(
        checksums={201: False, 400: True}.get(refused.status),
        versioning="on" if "x-ms-version-id" in refused.headers else None,
        encryption="Azure's own keys" if found.status == 200 else None,
        object_lock=None if lock is None else lock == "true",
    )
