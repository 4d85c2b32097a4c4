"""AWS Signature Version 4 for single requests to S3, as pure functions of the time.

Source: Amazon S3 API reference, "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)".
For S3 the path is encoded once. The payload hash is the SHA-256 that Ferry has already computed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

EMPTY_SHA256 = hashlib.sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class Keys:
    """Access key ID, secret access key and session token."""

    key_id: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def _single_blanks(value: str) -> str:
    return " ".join(filter(None, value.split(" "))) if "  " in value else value


class Signer:
    """Signs requests for one host and region. The signing key of a day is derived once."""

    __slots__ = ("_day", "_day_keys", "_host", "_key", "_region")

    def __init__(self, host: str, region: str) -> None:
        self._host = host
        self._region = region
        self._day = ""
        self._day_keys: Keys | None = None
        self._key = b""

    def headers(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        payload_sha256: str,
        keys: Keys,
        now: datetime,
        query: str = "",
    ) -> dict[str, str]:
        """Returns ``headers`` together with those that sign the request.

        Header names are lower case. Values have no surrounding blanks; several blanks inside are signed as one.
        ``path`` and ``query`` are percent-encoded, the parameters sorted and each with its `=`. ``now`` is UTC. All
        headers and the host are signed.
        """
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        day = stamp[:8]
        signed = {**headers, "x-amz-content-sha256": payload_sha256, "x-amz-date": stamp}
        if keys.token is not None:
            signed["x-amz-security-token"] = keys.token
        names = sorted([*signed, "host"])
        lines = "".join(f"{name}:{self._host if name == 'host' else _single_blanks(signed[name])}\n" for name in names)
        listed = ";".join(names)
        request = f"{method}\n{path}\n{query}\n{lines}\n{listed}\n{payload_sha256}"
        scope = f"{day}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        if day != self._day or keys is not self._day_keys:
            self._day, self._day_keys, self._key = day, keys, self._derive(day, keys.secret)
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.key_id}/{scope}, SignedHeaders={listed}, Signature={signature}"
        )
        return signed

    def _derive(self, day: str, secret: str) -> bytes:
        key = f"AWS4{secret}".encode()
        for part in (day, self._region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key
