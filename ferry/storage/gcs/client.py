"""Requests to the JSON API with a token, and what becomes of responses that are not objects."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from ferry.core import Fatal, ObjectError
from ferry.http import Response, Upload
from ferry.storage.endpoint import Endpoint
from ferry.storage.gcs.errors import gcs_error, parse_error
from ferry.storage.gcs.resources import Resource, parse
from ferry.storage.gcs.tokens import Tokens


class Client:
    """Client for one bucket."""

    def __init__(self, endpoint: Endpoint, bucket: str, tokens: Tokens) -> None:
        self.endpoint = endpoint
        self.bucket = quote(bucket, safe="")
        self._tokens = tokens
        self.objects = f"{endpoint.path}/storage/v1/b/{self.bucket}/o"
        self.uploads = f"{endpoint.path}/upload/storage/v1/b/{self.bucket}/o"

    def object(self, key: str) -> str:
        """Returns the path of an object."""
        return f"{self.objects}/{quote(key, safe='')}"

    async def send(
        self,
        method: str,
        target: str,
        side: str,
        headers: Mapping[str, str] = {},
        data: bytes | Upload | None = None,
        *,
        extra_read_s: float = 0.0,
        again: bool = True,
    ) -> Response:
        """Sends a request, after a 401 once more with another token, and returns its response, the body unread."""
        while True:
            token = await self._tokens.headers()
            response = await self.endpoint.request(
                method, target, {**token, **headers}, data, side, extra_read_s=extra_read_s, again=again
            )
            if response.status != 401:
                self._tokens.accepted(token)
                return response
            if not self._tokens.refused(token):
                return response
            response.close()

    async def read(self, response: Response, side: str) -> bytes:
        return await self.endpoint.read(response, side)

    async def resource(self, response: Response, side: str) -> Resource:
        """Returns the JSON object of a response with status 200. Raises ObjectError or Fatal for any other."""
        if response.status not in (200, 201):
            raise await self.error(response, side)
        return parse(await self.read(response, side), side)

    async def error(self, response: Response, side: str) -> ObjectError | Fatal:
        body = await self.read(response, side)
        return gcs_error(response.status, body, side, response.headers.get("Retry-After"))

    async def check_missing(self, response: Response, side: str) -> None:
        """Returns if a 404 is about an object. Raises ObjectError or Fatal otherwise.

        Google names what is missing; emulators do not. Then a listing shows whether the bucket exists.
        """
        body = await self.read(response, side)
        missing = parse_error(body).missing
        if missing == "object" or (not missing and await self._exists(side)):
            return
        raise gcs_error(404, body, side)

    async def _exists(self, side: str) -> bool:
        response = await self.send("GET", f"{self.objects}?maxResults=1&fields=nextPageToken", side)
        await self.read(response, side)
        return response.status == 200
