"""Emulators of Google Cloud Storage. Neither does all that the service does: the contract needs both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from ferry.storage import Access, GoogleAccess
from tests.servers.stores.known import Known
from tests.servers.stores.server import INSTALLED, StoreServer

_HEADERS = {
    "contentType": "Content-Type",
    "cacheControl": "Cache-Control",
    "contentDisposition": "Content-Disposition",
    "contentLanguage": "Content-Language",
    "contentEncoding": "Content-Encoding",
}


class GcsServer(StoreServer):
    """An emulator. The other client sends requests of the JSON API; no credentials are checked."""

    scheme = "gs"

    def access(self) -> Access:
        return GoogleAccess(self.endpoint_url, anonymous=True)

    def make_bucket(self, name: str) -> None:
        self._json("POST", "/storage/v1/b?project=test", {"name": name})

    def put(self, bucket: str, key: str, data: bytes) -> None:
        query = urlencode({"uploadType": "media", "name": key})
        answer = self.ask(
            "POST", f"/upload/storage/v1/b/{bucket}/o?{query}", {"content-type": "application/octet-stream"}, data
        )
        assert answer.status == 200, answer

    def get(self, bucket: str, key: str) -> bytes | None:
        answer = self.ask("GET", f"{_path(bucket, key)}?alt=media", {"accept-encoding": "gzip"})
        assert answer.status in (200, 404), answer
        return answer.body if answer.status == 200 else None

    def keys(self, bucket: str) -> list[str]:
        found: list[str] = []
        query: dict[str, str] = {}
        while True:
            page = self._json("GET", f"/storage/v1/b/{bucket}/o?{urlencode(query)}")
            found += [item["name"] for item in page.get("items", [])]
            if not page.get("nextPageToken"):
                return found
            query = {"pageToken": page["nextPageToken"]}

    def attributes(self, bucket: str, key: str) -> dict[str, str]:
        found = self._json("GET", _path(bucket, key))
        metadata = {name.lower(): value for name, value in found.get("metadata", {}).items()}
        return {header: found[name] for name, header in _HEADERS.items() if name in found} | metadata

    def open_uploads(self, bucket: str) -> list[str]:
        return []  # the service has no list of them

    def _json(self, method: str, target: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        answer = self.ask(method, target, {"content-type": "application/json"}, data)
        assert answer.status == 200, answer
        return json.loads(answer.body)


def _path(bucket: str, key: str) -> str:
    return f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}"


class FakeGcsServer(GcsServer):
    """The one for most: every key, the order of listings, generations, copies, transcoding.

    It compares no digest, and asking it how far a resumable upload is ends that upload.
    """

    name = "fake-gcs-server"
    known = Known(
        bad_keys=frozenset({"newline"}),
        compares_digest=False,
        checks_keys=False,
        creates_parts_once=False,
        names_missing=False,
    )

    @classmethod
    def program(cls) -> Sequence[str]:
        found = sorted(INSTALLED.glob("lib/python*/site-packages/**/fake-gcs-server/bin/*"))
        return (str(found[0]) if found else "fake-gcs-server",)

    def options(self) -> Sequence[str]:
        # its file backend folds `//` and refuses long names
        return (
            "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(self.port),
            "-external-url", self.endpoint_url, "-public-host", f"127.0.0.1:{self.port}",
        )  # fmt: skip


class GcpStorageEmulator(GcsServer):
    """The second one: it refuses a wrong md5Hash or crc32c, and its resumable uploads can be asked and continued.

    It ignores ifGenerationMatch and startOffset, and drops connections when many are used at once.
    """

    name = "gcp-storage-emulator"
    known = Known(
        keys={"two-dot segment": "refused"},
        bad_keys=frozenset({"newline", "double slash", "dot segment", "slash at the end", "slash at the start"}),
        checks_keys=False,
        names_missing=False,
        starts_after=False,
        at_once=1,
        creates_once=False,
        if_match="no",
    )

    @classmethod
    def program(cls) -> Sequence[str]:
        return (str(INSTALLED / "bin" / "gcp-storage-emulator"),)

    def options(self) -> Sequence[str]:
        return ("start", "--host", "127.0.0.1", "--port", str(self.port), "--in-memory", "--quiet")
