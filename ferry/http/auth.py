"""The job's credential for web servers: fixed, or an access token that is renewed during a run."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

from yarl import URL

from ferry.core import Again, ErrorClass, ObjectError
from ferry.http.errors import from_status
from ferry.http.header_hosts import Recipients
from ferry.http.request_headers import sendable_header

EARLY_S = 60.0  # how long before its end a token is renewed
RETRY_S = 1.0  # after a failed request for a token, until the next one
_TOKEN = re.compile(r"[\x21-\x7e]+")
_ERROR = re.compile(r"[a-z_]{1,40}")  # RFC 6749 section 5.2; other text may be anything

Header = tuple[str, str]  # name, value


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request for an access token: OAuth 2.0 client credentials (RFC 6749 section 4.4)."""

    url: str
    client_id: str = field(repr=False)
    client_secret: str = field(repr=False)
    data: Mapping[str, str] = field(default_factory=dict, repr=False)

    def forms(self) -> list[tuple[Header | None, bytes]]:
        """Return the ways to send the request, as the Authorization header and the body of each.

        Each server supports one of two (RFC 6749 section 2.3.1): Basic, and the secret in the form.
        """
        form = {"grant_type": "client_credentials", **self.data}
        user = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}"
        in_form = {**form, "client_id": self.client_id, "client_secret": self.client_secret}
        return [(basic(user), urlencode(form).encode()), (None, urlencode(in_form).encode())]


@dataclass(frozen=True, slots=True)
class Auth:
    """A job's `source.auth` with its references resolved, for the sites of ``recipients``. Never written to disk.

    It has a header, a query parameter, or a request for tokens.
    """

    recipients: Sequence[str]
    header: Header | None = field(default=None, repr=False)
    parameter: tuple[str, str] | None = field(default=None, repr=False)
    token: TokenRequest | None = None

    def __post_init__(self) -> None:
        if self.header is not None:
            sendable_header(*self.header, "source.auth")

    @classmethod
    def decode(cls, data: Mapping[str, Any] | None) -> Auth | None:
        """Return the Auth of its ``dataclasses.asdict`` in JSON."""
        if data is None:
            return None
        pairs = {name: tuple(data[name]) if data[name] else None for name in ("header", "parameter")}
        return cls(**{**data, **pairs, "token": TokenRequest(**data["token"]) if data["token"] else None})


def basic(user: str) -> Header:
    """Return the header for ``user:password`` (RFC 7617)."""
    return "Authorization", "Basic " + base64.b64encode(user.encode()).decode()


class Token:
    """Decides when another access token is needed. Times are in seconds of any one clock.

    | token | another one |
    |---|---|
    | none yet | yes |
    | less than 60 s before its end (or in the last half of a shorter life) | yes |
    | refused with 401 | yes |
    | renewed after a 401, and refused with 401 before any request with it succeeded | no: the token is not the cause |
    | any other | no |
    """

    def __init__(self) -> None:
        self.value = ""
        self._renew_at = self._ends_at = math.inf
        self._on_trial = False  # renewed after a 401, and not accepted since

    def is_due(self, now: float) -> bool:
        """Return whether the next request needs another token."""
        return not self.value or now >= self._renew_at

    def is_over(self, now: float) -> bool:
        """Return whether the token can no longer be used. Until then it serves while another one cannot be had."""
        return not self.value or now >= self._ends_at

    def renewed(self, body: bytes, asked_at: float) -> None:
        """Take the answer to a request that was sent at ``asked_at``. Raises ObjectError if it holds no token."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        value = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(value, str) or not _TOKEN.fullmatch(value):
            raise _refused("its answer holds no `access_token`")
        if str(answer.get("token_type", "bearer")).lower() != "bearer":
            raise _refused("its tokens are not bearer tokens")
        try:
            life_s = float(answer.get("expires_in") or 0)
        except (TypeError, ValueError):
            life_s = 0.0
        self.take(value, life_s if life_s > 0 else math.inf, asked_at)

    def take(self, value: str, life_s: float, asked_at: float) -> None:
        """Take a token that ends ``life_s`` seconds after ``asked_at``."""
        self.value = value
        self._ends_at = asked_at + life_s
        self._renew_at = self._ends_at - min(EARLY_S, life_s / 2)

    def accepted(self, used: str) -> None:
        """Note that a request with the token ``used`` succeeded."""
        if used == self.value:
            self._on_trial = False

    def refused(self, used: str) -> bool:
        """Note a 401 for the token ``used``, and return whether the request may succeed with another token."""
        if used == self.value:
            if self._on_trial:
                return False
            self.value, self._on_trial = "", True
        return True


def _refused(why: str, status: int | None = None) -> ObjectError:
    known = None if status is None else from_status(status)
    passing = known is not None and known.again is Again.NOW
    return ObjectError(ErrorClass.SERVER_ERROR if passing else ErrorClass.FORBIDDEN, why, status_code=status)


# Sends a form to a URL with an Authorization header or none. Returns the status and the body of the response.
Post = Callable[[str, Header | None, bytes], Awaitable[tuple[int, bytes]]]


class Credential:
    """Adds a job's credential to requests, and renews its token. For one event loop.

    Concurrent requests wait for one renewal. ``post`` sends requests for tokens, ``now`` is the loop's clock.
    """

    def __init__(self, auth: Auth, post: Post, now: Callable[[], float]) -> None:
        self._auth = auth
        self._recipients = Recipients(auth.recipients)
        self._post = post
        self._now = now
        self._token = Token()
        self._lock = asyncio.Lock()
        self._failure: ObjectError | None = None
        self._retry_at = 0.0
        self._ways = auth.token.forms() if auth.token is not None else []

    def is_for(self, site: tuple[str, str, int]) -> bool:
        """Return whether the site may receive the credential."""
        return self._recipients.include(*site)

    def in_query(self, url: URL) -> URL:
        """Return the URL with the credential, if it is a query parameter that the URL does not have yet."""
        if self._auth.parameter is None or self._auth.parameter[0] in url.query:
            return url
        name, value = (quote(text, safe="") for text in self._auth.parameter)
        return URL(f"{url}{'&' if url.raw_query_string else '?'}{name}={value}", encoded=True)

    async def header(self) -> Header | None:
        """Return the header with the credential, or None if it is not a header. Raises ObjectError without a token."""
        if self._auth.token is None:
            return self._auth.header
        if self._token.is_due(self._now()):
            async with self._lock:
                if self._token.is_due(self._now()):
                    await self._renew_if_possible(self._auth.token.url)
        return "Authorization", f"Bearer {self._token.value}"

    def accepted(self, header: Header | None) -> None:
        """Note that a request with this header succeeded."""
        if header is not None:
            self._token.accepted(header[1].removeprefix("Bearer "))

    def refused(self, header: Header | None) -> bool:
        """Note a 401 for a request with this header, and return whether it may be sent again with another token."""
        return bool(self._ways) and header is not None and self._token.refused(header[1].removeprefix("Bearer "))

    async def _renew_if_possible(self, url: str) -> None:
        try:
            await self._renew(url)
        except ObjectError:
            if self._token.is_over(self._now()):
                raise

    async def _renew(self, url: str) -> None:
        if self._failure is not None and self._now() < self._retry_at:
            raise _no_token(self._failure)
        asked_at = self._now()
        try:
            self._token.renewed(await self._answer(url), asked_at)
        except ObjectError as error:
            self._failure, self._retry_at = error, self._now() + RETRY_S
            raise _no_token(error) from None

    async def _answer(self, url: str) -> bytes:
        """Return the token server's answer. The way that it accepts is tried first from then on."""
        for way in list(self._ways):
            status, body = await self._post(url, *way)
            if status == 200:
                self._ways = [way, *(other for other in self._ways if other is not way)]
                return body
            if status not in (400, 401):
                break
        raise _refused(f"HTTP {status}{_code(body)}. Check its address, `client_id` and `client_secret`", status)


def _no_token(error: ObjectError) -> ObjectError:
    """Return the error of a request that has no token for this reason, another one for each request.

    It counts as a refusal or a server error of the host, so that the host's circuit opens and its rows stay pending.
    """
    message = f"no token from the server of `source.auth`: {error.message}"
    if error.again is Again.NOW:
        return ObjectError(ErrorClass.SERVER_ERROR, message, status_code=error.status_code)
    return ObjectError(ErrorClass.FORBIDDEN, message, status_code=401)


def _code(body: bytes) -> str:
    """Return the error code of a token server's answer for a message; other text of the answer is left out."""
    try:
        code = json.loads(body)["error"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return f" {code}" if isinstance(code, str) and _ERROR.fullmatch(code) else ""
