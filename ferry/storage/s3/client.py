"""Signed requests to one bucket of an S3 store."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ferry.core import Fatal, ObjectError
from ferry.http import Network, Response, Upload, parse_retry_after
from ferry.storage.endpoint import Endpoint, encoded
from ferry.storage.s3.credentials import Credentials
from ferry.storage.s3.errors import redirected, s3_code, store_status
from ferry.storage.s3.sigv4 import EMPTY_SHA256, Signer
from ferry.storage.s3.xml import query_value


@dataclass(frozen=True, slots=True)
class Reply:
    """A store's response with its complete body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_twice: bool = False  # the first request got no response before its connection closed


class Client:
    """Sends requests and raises ObjectError and Fatal. For one event loop."""

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        region: str,
        credentials: Credentials,
        *,
        timeout_s: float,
        read_s: float,
        connections: int,
        network: Network,
    ) -> None:
        self._endpoint = Endpoint(
            endpoint, timeout_s=timeout_s, read_s=read_s, connections=connections, network=network
        )
        self.endpoint = endpoint
        self.bucket = bucket
        self._root = f"{self._endpoint.path}/{bucket}/"
        self._signer = Signer(self._endpoint.host, region)
        self._credentials = credentials

    async def close(self) -> None:
        await self._endpoint.close()

    @property
    def connections_opened(self) -> int:
        return self._endpoint.connections_opened

    async def send(
        self,
        method: str,
        key: str,
        side: str,
        headers: Mapping[str, str] = {},
        data: bytes | Upload | None = None,
        sha256: str | None = None,
        *,
        query: Mapping[str, str] | None = None,
        extra_read_s: float = 0.0,
        again: bool = True,
    ) -> Response:
        """Sends a request and returns its response, the body unread.

        ``sha256`` is the body's, in hex digits; for bytes it may be left out. ``extra_read_s`` and ``again`` are those
        of ferry/storage/endpoint.py.
        """
        path = self._root + encoded(key)
        asked = "&".join([f"{name}={query_value(query[name])}" for name in sorted(query)]) if query else ""
        keys = await self._credentials.current()
        if keys is not None:
            if sha256 is None:
                sha256 = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) and data else EMPTY_SHA256
            headers = self._signer.headers(method, path, headers, sha256, keys, datetime.now(UTC), asked)
        target = f"{path}?{asked}" if asked else path
        return await self._endpoint.request(method, target, headers, data, side, extra_read_s=extra_read_s, again=again)

    async def ask(
        self,
        method: str,
        key: str,
        side: str,
        headers: Mapping[str, str] = {},
        data: bytes | Upload | None = None,
        sha256: str | None = None,
        *,
        query: Mapping[str, str] | None = None,
        ok: Container[int] = (200,),
        extra_read_s: float = 0.0,
        again: bool = True,
    ) -> Reply:
        """Sends a request and returns its response with the body. Raises an error for a status that is not ``ok``.

        S3 may also send an error under 200.
        """
        response = await self.send(
            method, key, side, headers, data, sha256, query=query, extra_read_s=extra_read_s, again=again
        )
        if response.status not in ok:
            raise await self.error(response, side)
        body = await self._endpoint.read(response, side)
        if response.status == 200 and method != "GET" and (code := s3_code(body)):
            raise store_status(200, code, side)  # the store did not do it
        return Reply(response.status, response.headers, body, response.sent_twice)

    async def read(self, response: Response, side: str) -> bytes:
        """Returns the body of a response that is not an object."""
        return await self._endpoint.read(response, side)

    async def error(self, response: Response, side: str) -> ObjectError | Fatal:
        """Returns the error that a response means."""
        body = await self._endpoint.read(response, side)
        if 300 <= response.status < 400:
            location, region = response.headers.get("Location"), response.headers.get("x-amz-bucket-region")
            return redirected(response.status, location, region, self.bucket, side)
        retry_after_s = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
        return store_status(response.status, s3_code(body), side, retry_after_s)
