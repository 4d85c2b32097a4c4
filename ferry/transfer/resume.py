"""Uploads in parts that an earlier run left: a row goes on from its last part if its source has not changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ferry.core import ErrorClass, ObjectError, Row, StreamedBody, TransferResult
from ferry.http import Rest
from ferry.ratelimit import Permit
from ferry.state import manifest_digest_of
from ferry.storage import Unfinished
from ferry.transfer.destination import Destination
from ferry.transfer.source import Fetch, Sources

# The source did not answer the request for the rest, and may answer the next one.
_TEXTS = ("version", "etag", "last_modified", "content_type", "message")  # of `about`; those but the first may be None
_PASSING = {ErrorClass.TIMEOUT, ErrorClass.DNS, ErrorClass.TLS, ErrorClass.CONNECTION, ErrorClass.RATE_LIMITED}


class Resume:
    """Fetches the rest of bodies whose upload an earlier run began."""

    def __init__(self, sources: Sources, destination: Destination, settings_digest: str) -> None:
        """``settings_digest``: that of the settings that change what is written or accepted."""
        self._sources = sources
        self._destination = destination
        self._settings_digest = settings_digest

    def about(self, row: Row, fetch: Fetch, result: TransferResult, *, known: bool) -> Mapping[str, Any] | None:
        """Returns what a later run must know to resume the upload of a checked body; None if it cannot.

        It can if the source has told by which version a part of these very bytes can be asked for. ``known``: the bytes
        have shown the type.
        """
        if fetch.version is None or (fetch.body.path is None and not isinstance(fetch.body, StreamedBody)):
            return None
        return {
            "row_id": row.row_id, "for": self._made_for(row), "version": fetch.version, "etag": fetch.etag,
            "last_modified": fetch.last_modified, "attributes": fetch.attributes,
            "content_type": result.content_type, "message": result.message, "known": known,
        }  # fmt: skip

    async def fetch(self, row: Row, permit: Permit) -> Fetch | None:
        """Returns the rest of the row's body, or None if the row must start afresh. Raises ObjectError and Fatal.

        | the store has the upload and parts of it | the source | the row |
        |---|---|---|
        | no, or for other settings, or another source | | starts afresh |
        | by a note that others may have written, and the manifest has no SHA-256 | | starts afresh |
        | yes | sends the rest, and its parts have the MD5s of the log | goes on |
        | yes | sends anything else, or refuses | starts afresh |
        | yes | does not answer | fails this time, and may go on the next |

        The digests of a streamed upload are not known: the whole body is fetched again, and the parts that the store
        lacks are sent.
        """
        uploads = self._destination.store.uploads
        if not uploads.may_resume(row.row_id) or (uploads.shared and row.sha256 is None):
            return None
        unfinished = await self._destination.unfinished(row)
        if unfinished is None or not unfinished.start or not _is_of(unfinished, row, self._made_for(row)):
            return None
        if unfinished.streamed:
            fetch = await self._sources.fetch(row, permit)
            if isinstance(fetch.body, StreamedBody):
                fetch.body.resumes = fetch.version == unfinished.about["version"]
            return fetch
        rest = Rest(unfinished.start, unfinished.size, unfinished.about["version"], unfinished.part_bytes)
        try:
            fetch = await self._sources.fetch_rest(row, rest, permit)
        except ObjectError as error:
            if error.error_class in _PASSING:
                raise
            return None
        if not _is_rest_of(fetch, unfinished):
            fetch.body.discard()
            return None
        return fetch

    def _made_for(self, row: Row) -> str:
        """Returns a digest of all that decides which bytes are written where, and with which attributes."""
        facts = [
            self._settings_digest, self._destination.store.uri, self._destination.store.uploads.where,
            manifest_digest_of(row), row.source, row.key, row.content_type,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _is_of(unfinished: Unfinished, row: Row, made_for: str) -> bool:
    """Returns whether an upload is of this row, and its entry whole. An entry may be damaged, or forged."""
    about = unfinished.about
    digests = [] if unfinished.streamed else [(row.md5, unfinished.md5), (row.sha256, unfinished.sha256)]
    attributes = about.get("attributes")
    return (
        about.get("for") == made_for
        and row.size in (None, unfinished.size)
        and all(wanted is None or wanted == found for wanted, found in digests)
        and isinstance(about.get("version"), str)
        and all(isinstance(about.get(name, 0), str | None) for name in _TEXTS)
        and isinstance(attributes, dict)
        and all(isinstance(value, str) for value in attributes.values())
        and isinstance(about.get("known"), bool)
    )


def _is_rest_of(fetch: Fetch, unfinished: Unfinished) -> bool:
    """Returns whether the parts that were fetched have the MD5s of the log. Then the body becomes the whole one's."""
    body, about = fetch.body, unfinished.about
    md5s = list(unfinished.md5s[unfinished.start // unfinished.part_bytes :])
    if body.parts is None or [digests.md5 for digests in body.parts.digests] != md5s:
        return False
    body.size, body.md5, body.sha256, body.start = unfinished.size, unfinished.md5, unfinished.sha256, unfinished.start
    body.about = about
    fetch.etag, fetch.last_modified, fetch.attributes = about["etag"], about["last_modified"], about["attributes"]
    return True
