"""The rest of an object: asked for by a strong ETag, and taken only if the response is that part of that version."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from ferry.core.errors import ObjectError
from ferry.http.exchange import Fetched, Rest
from tests.ferry.http.test_origin import always, client, got, reply, serving

WHOLE = b"0123456789abcdef"
REST = Rest(start=8, size=16, version='"v1"', part_bytes=4)
PARTIAL, RANGE, ETAG = "206 Partial Content", "Content-Range: bytes 8-15/16", 'ETag: "v1"'


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        (['ETag: "v1"'], '"v1"'),
        (['ETag: W/"v1"'], None),
        (["ETag: v1"], None),
        ([], None),
        (['ETag: "v1"', "Content-Encoding: identity"], None),
    ],
)
def test_by_which_version_a_part_can_be_asked_for(headers: list[str], version: str | None, tmp_path: Path) -> None:
    """By a strong ETag of a body that is sent as it is, and by nothing else."""
    assert got(always(reply(WHOLE, "200 OK", *headers)), tmp_path / "spool").version == version


def rest(raw: bytes, spool: Path) -> tuple[Fetched, dict[str, str]]:
    async def go() -> tuple[Fetched, dict[str, str]]:
        async with serving(always(raw)) as server:
            origin = client(spool)
            try:
                fetched = await origin.get_rest(f"http://127.0.0.1:{server.port}/a", REST, lambda _: 0.0)
            finally:
                await origin.close()
            return fetched, server.requests[0].headers

    return asyncio.run(go())


def test_the_rest_and_the_digests_of_its_parts(tmp_path: Path) -> None:
    """It comes into a file, however small, since it is sent in parts from there."""
    fetched, asked = rest(reply(WHOLE[8:], PARTIAL, ETAG, RANGE), tmp_path / "spool")
    assert (asked["range"], asked["if-match"]) == ("bytes=8-", '"v1"')
    body = fetched.body
    assert body.path is not None
    assert body.path.read_bytes() == WHOLE[8:]
    assert body.parts is not None
    assert [digests.md5 for digests in body.parts.digests] == [
        hashlib.md5(part).hexdigest() for part in (WHOLE[8:12], WHOLE[12:])
    ]
    body.discard()


@pytest.mark.parametrize(
    "raw",
    [
        reply(WHOLE, "200 OK", ETAG),
        reply(WHOLE[8:], PARTIAL, ETAG),
        reply(WHOLE[8:], PARTIAL, ETAG, "Content-Range: bytes 0-7/16"),
        reply(WHOLE[8:], PARTIAL, ETAG, "Content-Range: bytes 8-15/17"),
        reply(WHOLE[8:], PARTIAL, ETAG, "Content-Range: bytes 8-15/*"),
        reply(WHOLE[8:], PARTIAL, 'ETag: "v2"', RANGE),
        reply(WHOLE[8:], PARTIAL, 'ETag: W/"v1"', RANGE),
        reply(WHOLE[8:], PARTIAL, RANGE),
        reply(WHOLE[8:], PARTIAL, ETAG, RANGE, "Content-Encoding: gzip"),
        reply(WHOLE[8:12], PARTIAL, ETAG, RANGE, length=8),
        reply(b"", "304 Not Modified", ETAG),
        reply(b"", "412 Precondition Failed"),
        reply(b"", "416 Range Not Satisfiable"),
    ],
)
def test_any_other_answer_is_an_error(raw: bytes, tmp_path: Path) -> None:
    """And nothing of it stays on the disk."""
    with pytest.raises(ObjectError):
        rest(raw, tmp_path / "spool")
    assert list((tmp_path / "spool").glob("*")) == []
