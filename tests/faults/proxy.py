"""A front of a real store that fails as told: seeded, request by request, or with one answer for all."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from yarl import URL

_OF_THE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


class Bad(StrEnum):
    """What becomes of a PUT."""

    SLOW_DOWN = "slow_down"  # 503 SlowDown
    INTERNAL = "internal"  # 500 InternalError
    LOST = "lost"  # 200 with another object's ETag; nothing is stored
    LOST_QUIETLY = "lost_quietly"  # 200 with the right ETag; nothing is stored
    CUT = "cut"  # half of the body is stored; the ETag is that of the half
    ALTERED = "altered"  # one byte is another in what is stored; the ETag is that of what is stored
    RESET = "reset"  # the connection is reset before the store has anything
    ANSWER_LOST = "answer_lost"  # stored, and then the connection is reset


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer for all writes."""

    status: int
    code: str
    headers: dict[str, str] = field(default_factory=dict)


class Proxy:
    """Listens on loopback, in a thread of its own. What is not to go wrong is passed on byte for byte.

    The signature covers the Host header, which the store sees as the client sent it.
    """

    def __init__(self, endpoint_url: str, seed: int = 4) -> None:
        self._upstream = endpoint_url
        self._seed = seed
        self._bad: tuple[Bad, ...] = ()
        self._share = 0.0
        self._refusal: Refusal | None = None
        self._counts: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        """How often each trouble was met."""
        self.puts: Counter[str] = Counter()
        """Whole bodies that came, by path."""
        self.on_put: Callable[[int], None] = lambda _: None
        """Called after each PUT was answered well, with how many there were, in the proxy's thread."""
        self._answered = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.endpoint_url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def misbehave(self, *bad: Bad, share: float = 1.0) -> None:
        """From now on a share of the PUTs meets one of these; which ones, the seed, key and try decide."""
        self._bad, self._share = bad, share

    def refuse(self, refusal: Refusal) -> None:
        """From now on every write gets this answer."""
        self._refusal = refusal

    def behave(self) -> None:
        self._bad, self._share, self._refusal = (), 0.0, None

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.endpoint_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = b"".join([piece async for piece in request.content.iter_any()])
        if request.method == "PUT":
            self.puts[request.path] += 1
        writes = request.method in ("PUT", "POST")
        if writes and (refusal := self._refusal) is not None:
            self.met[f"{refusal.status} {refusal.code}"] += 1
            return _error(refusal.status, refusal.code, refusal.headers)
        bad = self._choose(request.path_qs) if request.method == "PUT" else None
        if bad is not None:
            self.met[bad] += 1
        match bad:
            case Bad.SLOW_DOWN:
                return _error(503, "SlowDown")
            case Bad.INTERNAL:
                return _error(500, "InternalError")
            case Bad.LOST | Bad.LOST_QUIETLY:
                told = body if bad is Bad.LOST_QUIETLY else body + b"!"
                return web.Response(headers={"ETag": f'"{hashlib.md5(told).hexdigest()}"'})
            case Bad.CUT:
                body = body[: len(body) // 2]
            case Bad.ALTERED:
                body = body[:-1] + bytes([body[-1] ^ 1])
            case Bad.RESET:
                return _reset(request)
        answer = await self._pass_on(request, body)
        if bad is Bad.ANSWER_LOST:
            return _reset(request)
        if request.method == "PUT" and answer.status == 200:
            self._answered += 1
            self.on_put(self._answered)
        return answer

    def _choose(self, path: str) -> Bad | None:
        if not self._bad:
            return None
        self._counts[path] += 1
        key = path.split("/", 2)[-1]  # the bucket has another name in each run of the tests
        rng = random.Random(f"{self._seed} {key} {self._counts[path]}")
        return rng.choice(self._bad) if rng.random() < self._share else None

    async def _pass_on(self, request: web.BaseRequest, body: bytes) -> web.Response:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _OF_THE_HOP]
        url = URL(self._upstream + request.raw_path, encoded=True)
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            ) as answer:  # fmt: skip
                taken = await answer.read()
                given = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_THE_HOP}
                if request.method == "HEAD":
                    given["Content-Length"] = answer.headers.get("Content-Length", "0")
                return web.Response(status=answer.status, body=taken, headers=given)
        except aiohttp.ClientError:  # the store is down, and so is its front
            return _reset(request)


def _error(status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml", headers=headers)


def _reset(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
