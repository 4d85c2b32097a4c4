"""The job's credential on requests for objects: who gets it, and when a token is renewed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import ObjectError, UserError
from ferry.http.address_filter import AddressFilter
from ferry.http.auth import Auth, Token, TokenRequest
from ferry.http.exchange import OriginOptions
from ferry.http.origin import Origin
from tests.servers.list_api import CLIENT, IMAGE, SECRET, Answer, ListApi


@pytest.fixture
def api() -> Iterator[ListApi]:
    with ListApi() as server:
        server.protected = True
        yield server


def oauth(api: ListApi, secret: str = SECRET) -> Auth:
    return Auth([api.url], token=TokenRequest(f"{api.url}/token", CLIENT, secret))


def with_origin(
    work: Callable[[Origin], Awaitable[Any]], spool: Path, auth: Auth, allow: Sequence[str] = ("127.0.0.1",)
) -> Any:
    async def scenario() -> Any:
        options = OriginOptions({}, [], connect_s=5, read_s=5, total_s=20, max_bytes=1_000_000, auth=auth)
        origin = Origin(options, AddressFilter(allow), spool)
        try:
            return await work(origin)
        finally:
            await origin.close()

    return asyncio.run(scenario())


async def fetch(origin: Origin, url: str) -> str:
    """Returns "ok", or the error's class."""
    try:
        fetched = await origin.get(url)
    except ObjectError as error:
        return f"{error.error_class}: {error.message}"
    data = fetched.body.data
    fetched.body.discard()
    return "ok" if data == IMAGE else "other"


def get(api: ListApi, spool: Path, auth: Auth, *paths: str, **given: Any) -> list[str]:
    """Fetches all paths at once."""

    async def work(origin: Origin) -> list[str]:
        return await asyncio.gather(*(fetch(origin, api.url + path) for path in paths))

    found: list[str] = with_origin(work, spool, auth, **given)
    return found


def test_a_token_that_ends_is_renewed_once_for_all(api: ListApi, tmp_path: Path) -> None:
    """Many requests meet the end of a token: each is sent again with the one token that takes its place."""

    async def work(origin: Origin) -> list[str]:
        first = await fetch(origin, f"{api.url}/img/0.jpg")
        api.tokens.clear()
        api.uses = 1_000
        return [first, *await asyncio.gather(*(fetch(origin, f"{api.url}/img/{n}.jpg") for n in range(40)))]

    assert set(with_origin(work, tmp_path, oauth(api))) == {"ok"}
    assert api.issued == 2


def test_tokens_that_end_again_and_again(api: ListApi, tmp_path: Path) -> None:
    """Each token that was accepted is renewed after a 401, in the way that worked, and no connection stays busy."""
    api.uses, api.client_auth = 5, "form"

    async def work(origin: Origin) -> tuple[list[str], int]:
        return [await fetch(origin, f"{api.url}/img/{n}.jpg") for n in range(20)], len(origin._connections._busy)

    answers, busy = with_origin(work, tmp_path, oauth(api))
    assert set(answers) == {"ok"}
    assert api.issued == 4
    assert len(api.paths("/token")) == 4 + 1
    assert busy == 0


def test_a_second_401_is_the_answer(api: ListApi, tmp_path: Path) -> None:
    """A host that never accepts a token costs one renewal, not one for each row."""
    api.uses = 0
    answers = get(api, tmp_path, oauth(api), *(f"/img/{n}.jpg" for n in range(20)))
    assert set(answers) == {"forbidden: the origin denies access (HTTP 401)"}
    assert api.issued == 2


def test_a_request_is_sent_again_once(api: ListApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while other hosts accept each new token, so that each refusal seems to be worth another try."""
    monkeypatch.setattr(Token, "refused", lambda *_: True)
    api.uses = 0
    assert "HTTP 401" in get(api, tmp_path, oauth(api), "/img/1.jpg")[0]
    assert len(api.paths("/img")) == 2


def test_a_token_is_renewed_before_its_end(api: ListApi, tmp_path: Path) -> None:
    """No request meets the end that the token server names."""
    api.life_s = 0.4

    async def work(origin: Origin) -> list[str]:
        first = await fetch(origin, f"{api.url}/img/0.jpg")
        await asyncio.sleep(0.25)
        return [first, await fetch(origin, f"{api.url}/img/1.jpg")]

    assert with_origin(work, tmp_path, oauth(api)) == ["ok", "ok"]
    assert api.issued == 2
    assert [one.headers["authorization"] for one in api.asked if one.path != "/token"] == [
        "Bearer canarytoken-1", "Bearer canarytoken-2",
    ]  # fmt: skip


def test_a_token_serves_until_its_end(api: ListApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another one cannot be had before, it serves; after the end they fail."""
    api.life_s = 1.0

    async def work(origin: Origin) -> list[str]:
        first = await fetch(origin, f"{api.url}/img/0.jpg")
        monkeypatch.setattr(api, "_new_token", lambda _: Answer(status=503))
        await asyncio.sleep(0.6)
        second = await fetch(origin, f"{api.url}/img/1.jpg")
        await asyncio.sleep(0.5)
        return [first, second, await fetch(origin, f"{api.url}/img/2.jpg")]

    first, second, third = with_origin(work, tmp_path, oauth(api))
    assert (first, second) == ("ok", "ok")
    assert third.startswith("server_error: no token from the server of `source.auth`: HTTP 503")
    assert len(api.paths("/token")) >= 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(status=503), "server_error: no token from the server of `source.auth`: HTTP 503"),
        (Answer(b"<html>"), "forbidden: no token from the server of `source.auth`: its answer holds no `access_token`"),
        (Answer({"access_token": "a b"}), "holds no `access_token`"),
        (Answer({"access_token": "a\r\nX-Evil: 1"}), "holds no `access_token`"),
        (Answer({"access_token": "a", "token_type": "mac"}), "not bearer tokens"),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:1/"}), "forbidden: no token"),
        (Answer({"error": "<script>"}, 400), "HTTP 400. Check"),
        (Answer({"access_token": "a", "more": "x" * 200_000}), "holds no `access_token`"),
    ],
)
def test_no_token(answer: Answer, words: str, api: ListApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row fails with the reason, and a failing token server is asked once a second."""
    monkeypatch.setattr(api, "_new_token", lambda _: answer)
    found = get(api, tmp_path, oauth(api), *(f"/img/{n}.jpg" for n in range(10)))
    assert len(found) == 10
    assert all(words in one for one in found), found
    assert len(api.paths("/token")) == (2 if answer.status == 400 else 1)
    assert api.paths("/img") == []


def test_the_token_server_is_behind_the_address_filter(api: ListApi, tmp_path: Path) -> None:
    """A token server at a blocked address gets no request."""
    elsewhere = Auth([api.url], token=TokenRequest("http://10.0.0.1/token", CLIENT, SECRET))
    (found,) = get(api, tmp_path, elsewhere, "/img/1.jpg")
    assert "private address" in found
    assert api.asked == []


def test_who_gets_the_credential(api: ListApi, tmp_path: Path) -> None:
    """The sites of `recipients`, and none of a redirect; user info in a row's URL takes its place."""
    auth = Auth([api.url], header=("Authorization", "Bearer s3cret"))
    api.protected = False
    with ListApi() as other:
        api.faults["/img/1.jpg"] = [Answer(status=302, headers={"Location": f"{other.url}/img/1.jpg"})]
        with_user = api.url.replace("//", "//al:pw@")

        async def work(origin: Origin) -> list[str]:
            return [
                await fetch(origin, url) for url in (f"{api.url}/img/1.jpg", f"{other.url}/x", f"{with_user}/img/2.jpg")
            ]

        with_origin(work, tmp_path, auth)
        assert [one.headers.get("authorization") for one in api.asked] == ["Bearer s3cret", "Basic YWw6cHc="]
        assert [one.headers.get("authorization") for one in other.asked] == [None, None]


def test_a_host_that_the_job_does_not_name(api: ListApi, tmp_path: Path) -> None:
    """A refusal says that the host got no credential."""
    auth = Auth(["img.example"], header=("Authorization", "Bearer s3cret"))
    (found,) = get(api, tmp_path, auth, "/img/1.jpg")
    assert found == (
        "forbidden: the origin denies access (HTTP 401); Ferry sent no credential, because `source.auth_for` does not "
        f"list http://127.0.0.1:{api.port}"
    )


def test_a_key_in_the_query(api: ListApi, tmp_path: Path) -> None:
    """The parameter is added to the site's URLs, also after a redirect there, and not twice."""
    api.protected = False
    api.faults["/img/1.jpg?key=k%2F1"] = [Answer(status=302, headers={"Location": "/img/2.jpg?key=k%2F1"})]
    auth = Auth([api.url], parameter=("key", "k/1"))
    assert get(api, tmp_path, auth, "/img/1.jpg", "/img/3.jpg?w=5") == ["ok", "ok"]
    assert sorted(api.paths()) == ["/img/1.jpg?key=k%2F1", "/img/2.jpg?key=k%2F1", "/img/3.jpg?w=5&key=k%2F1"]


@pytest.mark.parametrize("header", [("Authorization", "Bearer s3cret\n"), ("Range", "s3cret")])
def test_a_credential_that_cannot_be_sent(header: tuple[str, str]) -> None:
    """A line break in a secret, or a header that means something else, is a UserError without the secret."""
    with pytest.raises(UserError, match=r"source\.auth") as caught:
        Auth(["h"], header=header)
    assert "s3cret" not in str(caught.value)


def test_secrets_are_not_shown(api: ListApi) -> None:
    """The credential's text shows no secret, and survives the way to another process."""

    for auth in (oauth(api), Auth(["h"], header=("X-K", "s3cret/")), Auth(["h"], parameter=("k", "s3cret/"))):
        assert "s3cret" not in repr(auth)
        assert "client_id" not in repr(auth)
        assert Auth.decode(json.loads(json.dumps(asdict(auth)))) == auth
    assert Auth.decode(None) is None


# --- when a token is needed


def answer(life: object = None) -> bytes:

    return json.dumps({"access_token": "t", "expires_in": life}).encode()


@pytest.mark.parametrize(
    ("life", "due_at"),
    [
        (3600, 3540.0),
        ("3600", 3540.0),
        (100, 50.0),
        (10, 5.0),
        (None, None),
        (0, None),
        (-5, None),
        ("x", None),
        ([], None),
    ],
)
def test_when_a_token_ends(life: object, due_at: float | None) -> None:
    """A token is due 60 s before its end, or at half of a life below two minutes; without an end, never."""
    token = Token()
    assert token.is_due(0.0)
    token.renewed(answer(life), 1_000.0)
    assert not token.is_due(1_000.0)
    if due_at is None:
        assert not token.is_due(1e9)
    else:
        assert not token.is_due(999.9 + due_at)
        assert token.is_due(1_000.0 + due_at)
        ends_at = 1_000.0 + float(str(life))
        assert not token.is_over(ends_at - 0.1)
        assert token.is_over(ends_at)


def test_refusals() -> None:
    """The table of Token: one renewal for a 401, and another one only after a request has succeeded."""
    token = Token()
    token.renewed(answer(), 0.0)
    assert token.refused("t")
    assert token.is_due(0.0)
    assert token.refused("t"), "another request used the old token: it is sent again with the new one"
    token.renewed(answer().replace(b'"t"', b'"u"'), 0.0)
    assert token.refused("t")
    assert not token.is_due(0.0)
    assert not token.refused("u")
    assert not token.is_due(0.0)
    token.accepted("t")
    assert not token.refused("u")
    token.accepted("u")
    assert token.refused("u")
    assert token.is_due(0.0)
