"""Azurite, Microsoft's emulator of Azure Storage, over http and https."""

from __future__ import annotations

import base64
import hmac
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from urllib.parse import quote, unquote, urlencode

from ferry.storage import Access, AzureAccess
from ferry.storage.azure import SharedKey
from tests.ferry.http.test_tls import certificate
from tests.servers.stores.known import Known
from tests.servers.stores.server import INSTALLED, Answer, StoreServer

VERSION = "2023-11-03"  # of the REST API
_MAIN = INSTALLED / "npm" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
_HEADERS = ("Content-Type", "Cache-Control", "Content-Disposition", "Content-Language", "Content-Encoding")
_META = "x-ms-meta-"


class Azurite(StoreServer):
    """Over http, by the account's key. It compares, keeps and lists Content-MD5s. A bucket is a container."""

    name = "Azurite"
    scheme = "az"
    known = Known(keys={"backslash": "folded", "0x01": "unlisted"}, aborts=False)
    account = "ferrytest"
    account_key = base64.b64encode(b"a key of 64 bytes, which is what Azure gives to each account....").decode()

    def __init__(self) -> None:
        super().__init__()
        self.endpoint_url = f"{self.endpoint_url}/{self.account}"

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("node") and _MAIN.exists() else "Azurite is not installed. Run `make stores`"

    @classmethod
    def program(cls) -> Sequence[str]:
        return ("node", str(_MAIN))

    def options(self) -> Sequence[str]:
        # it refuses versions of the API that are newer than itself, as today's libraries send them
        return (
            "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--inMemoryPersistence", "--silent",
            "--disableTelemetry", "--skipApiVersionCheck",
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {"AZURITE_ACCOUNTS": f"{self.account}:{self.account_key}"}

    def uri(self, bucket: str, prefix: str = "p") -> str:
        return f"az://{self.account}/{bucket}/{prefix}/"

    def access(self) -> Access:
        return AzureAccess(self.endpoint_url, secret=self.account_key)

    def wrong_access(self, bucket: str) -> Mapping[str, Access]:
        other = base64.b64encode(b"another key").decode()
        ended = datetime.now(UTC) - timedelta(minutes=30)
        expired = SharedKey(self.account, self.account_key).sas("rlwcd", "c", bucket, ended)
        secrets = {"key": other, "time": expired}
        return {what: AzureAccess(self.endpoint_url, secret=secret) for what, secret in secrets.items()}

    def make_bucket(self, name: str) -> None:
        assert self._signed("PUT", name, query={"restype": "container"}).status == 201

    def put(self, bucket: str, key: str, data: bytes) -> None:
        answer = self._signed("PUT", _path(bucket, key), headers={"x-ms-blob-type": "BlockBlob"}, body=data)
        assert answer.status == 201, answer

    def get(self, bucket: str, key: str) -> bytes | None:
        answer = self._signed("GET", _path(bucket, key))
        assert answer.status in (200, 404), answer
        return answer.body if answer.status == 200 else None

    def keys(self, bucket: str) -> list[str]:
        return self._list(bucket, {})

    def attributes(self, bucket: str, key: str) -> dict[str, str]:
        found = self._signed("HEAD", _path(bucket, key)).headers
        metadata = {name[len(_META) :]: value for name, value in found.items() if name.startswith(_META)}
        return {name: found[name.lower()] for name in _HEADERS if name.lower() in found} | metadata

    def open_uploads(self, bucket: str) -> list[str]:
        """Returns the keys that have blocks and no object."""
        return sorted(set(self._list(bucket, {"include": "uncommittedblobs"})) - set(self.keys(bucket)))

    def _list(self, bucket: str, query: Mapping[str, str]) -> list[str]:
        """Returns the names in a container (Azure REST API: List Blobs)."""
        found: list[str] = []
        marker: dict[str, str] = {}
        while True:
            answer = self._signed("GET", bucket, query={"restype": "container", "comp": "list", **query, **marker})
            assert answer.status == 200, answer
            page = ET.fromstring(answer.body)
            for name in page.iter("Name"):
                found.append(unquote(name.text or "") if name.get("Encoded") == "true" else name.text or "")
            marker = {"marker": page.findtext("NextMarker") or ""}
            if not marker["marker"]:
                return found

    def _signed(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
        body: bytes | None = None,
    ) -> Answer:
        """Sends a request that the account's key signs (Azure REST API: Authorize with Shared Key)."""
        target = f"/{self.account}/{path}"
        sent = {**headers, "x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION}
        length = str(len(body)) if body else ""
        content_type = {"content-type": "application/octet-stream"} if body is not None else {}
        lines = [method, "", "", length, "", content_type.get("content-type", ""), "", "", "", "", "", ""]
        lines += [f"{name}:{value}" for name, value in sorted(sent.items())]
        lines += [f"/{self.account}{target}", *(f"{name}:{value}" for name, value in sorted(query.items()))]
        mac = hmac.digest(base64.b64decode(self.account_key), "\n".join(lines).encode(), "sha256")
        sent |= {"authorization": f"SharedKey {self.account}:{base64.b64encode(mac).decode()}", **content_type}
        return self.ask(method, f"{target}?{urlencode(query)}" if query else target, sent, body)


class AzuriteHttps(Azurite):
    """The same over https, which a bearer token needs. Its tokens are checked but for their signatures."""

    name = "Azurite https"

    def __init__(self) -> None:
        super().__init__()
        self.endpoint_url = self.endpoint_url.replace("http:", "https:")
        self.certificate = certificate(self.folder)

    def options(self) -> Sequence[str]:
        return (*super().options(), "--oauth", "basic", "--cert", str(self.certificate), "--key", str(self.certificate))


def _path(bucket: str, key: str) -> str:
    return f"{bucket}/{quote(key, safe='/~')}"
