"""What authorises a request to Azure Blob Storage: the account's key, or a shared access signature (SAS).

Source: Azure Storage REST API, "Authorize with Shared Key" and "Create a service SAS".
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlencode

from ferry.core import UserError

SAS_VERSION = "2020-12-06"
COPY_S = 3600  # how long a SAS for the source of a copy is valid
_SIGNED = (
    "content-encoding", "content-language", "content-length", "content-md5", "content-type", "date",
    "if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range",
)  # fmt: skip
# The service sorts header names by the language rules of en-US: `-` does not count, and `_` precedes the digits.
_ORDER = {ord("-"): None, ord("_"): "!"}


class Authority:
    """What authorises requests. This class itself stands for no credentials: public containers. For one event loop."""

    ends_at: datetime | None = None  # when it ends and cannot be renewed
    https_only = False

    def lacks(self, rights: Mapping[str, str]) -> list[str]:
        """Returns which of these rights are known to be missing. Keys are letters of a SAS, of which any is enough."""
        return []

    async def authorize(
        self, method: str, path: str, query: Mapping[str, str], headers: dict[str, str], length: int
    ) -> str:
        """Adds to the headers what authorises the request, and returns what to append to its query, or ""."""
        return ""

    async def authorize_source(self, blob: str, headers: dict[str, str]) -> str:
        """As :meth:`authorize`, for reading ``container/key`` as the source of a copy."""
        return ""

    def refused(self, headers: Mapping[str, str]) -> bool:
        """Notes that these headers did not authenticate, and returns whether others may."""
        return False

    def accepted(self, headers: Mapping[str, str]) -> None:
        """Notes that these headers authenticated a request."""


class SharedKey(Authority):
    """The key of a storage account."""

    def __init__(self, account: str, key: str) -> None:
        """Takes the key in base64. Raises UserError if it is not."""
        self._account = account
        try:
            self._key = base64.b64decode(key, validate=True)
        except ValueError:  # also for text that is not ASCII
            raise UserError("credentials: the key of an Azure storage account is base64. Copy it again") from None

    async def authorize(
        self, method: str, path: str, query: Mapping[str, str], headers: dict[str, str], length: int
    ) -> str:
        values = {**headers, "content-length": str(length) if length else ""}
        plain = "\n".join([values.get(name, "") for name in _SIGNED])
        names = sorted([name for name in headers if name.startswith("x-ms-")], key=lambda name: name.translate(_ORDER))
        own = "".join([f"{name}:{headers[name]}\n" for name in names])
        asked = "".join([f"\n{name}:{value}" for name, value in sorted(query.items())]) if query else ""
        mac = self._mac(f"{method}\n{plain}\n{own}/{self._account}{path}{asked}")
        headers["authorization"] = f"SharedKey {self._account}:{mac}"
        return ""

    async def authorize_source(self, blob: str, headers: dict[str, str]) -> str:
        return self.sas("r", "b", blob, datetime.now(UTC) + timedelta(seconds=COPY_S))

    def sas(self, rights: str, kind: str, resource: str, ends_at: datetime) -> str:
        """Returns a service SAS for a blob (``kind`` b, ``resource`` container/key) or a container (c)."""
        end = ends_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        named = f"/blob/{self._account}/{resource}"
        text = "\n".join((rights, "", end, named, "", "", "", SAS_VERSION, kind, "", "", "", "", "", "", ""))
        fields = {"sv": SAS_VERSION, "sr": kind, "sp": rights, "se": end, "sig": self._mac(text)}
        return urlencode(fields, quote_via=quote, safe="")

    def _mac(self, text: str) -> str:
        return base64.b64encode(hmac.digest(self._key, text.encode(), "sha256")).decode()


class Sas(Authority):
    """A shared access signature: the query that the portal shows, with or without its `?`."""

    def __init__(self, query: str) -> None:
        """Raises UserError if it is not a SAS."""
        self._query = query.strip().removeprefix("?")
        fields = dict(parse_qsl(self._query))
        whole = "://" in self._query or ";" in self._query  # a whole address, or a connection string
        if "sig" not in fields or whole or not all("!" <= char <= "~" for char in self._query):
            raise UserError("credentials: an Azure SAS is a query that holds `sig=`. Copy it again from the portal")
        self._rights = fields.get("sp")  # None: a stored access policy of the container has them
        self.ends_at = _moment(fields.get("se", ""))

    def lacks(self, rights: Mapping[str, str]) -> list[str]:
        if self._rights is None:
            return []
        return [f"`{letters[0]}` ({name})" for letters, name in rights.items() if not set(letters) & set(self._rights)]

    async def authorize(
        self, method: str, path: str, query: Mapping[str, str], headers: dict[str, str], length: int
    ) -> str:
        return self._query

    async def authorize_source(self, blob: str, headers: dict[str, str]) -> str:
        return self._query


def _moment(text: str) -> datetime | None:
    """Returns the time of a SAS: ISO 8601 in UTC, also without seconds or a time of day."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
