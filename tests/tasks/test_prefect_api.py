"""What a person reads when Prefect's API refuses, and the wait for an API that is away."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from ferry.core import UserError
from tasks import prefect_api


@pytest.fixture(autouse=True)
def an_address() -> Iterator[None]:
    """Without one, Prefect's client starts a server of its own. Nothing is sent to this one."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (httpx.Response(404, json={"detail": "Deployment not found"}), "404 Deployment not found"),
        (httpx.Response(422, json={"exception_detail": "bad cron"}), "422 bad cron"),
        (httpx.Response(409, json={}), "409 Conflict"),
        (httpx.Response(500, json=["no mapping"]), "500 Internal Server Error"),
        (httpx.Response(502, text="<html>"), "502 Bad Gateway"),
        (httpx.Response(401, json={"detail": "no"}), "401, authentication required; set PREFECT_API_AUTH_STRING"),
        (httpx.Response(403, text=""), "403, authentication required; set PREFECT_API_AUTH_STRING"),
    ],
)
def test_a_refusal_has_its_reason(response: httpx.Response, said: str) -> None:
    """The status and the server's own words; for a missing password what to set."""
    request = httpx.Request("GET", "http://127.0.0.1/api")
    with pytest.raises(UserError, match=f"refused the request: {said}"), prefect_api.required_client():
        raise httpx.HTTPStatusError("refused", request=request, response=response)


def test_no_answer_is_the_user_s_error() -> None:
    """It names the reason, or the class of an error without one."""
    with pytest.raises(UserError, match="does not answer \\(no route\\)"), prefect_api.required_client():
        raise httpx.ConnectError("no route")
    with pytest.raises(UserError, match="does not answer \\(ReadTimeout\\)"), prefect_api.required_client():
        raise httpx.ReadTimeout("")


@pytest.mark.parametrize(
    ("away", "over_after", "returned", "warned"),
    [(0, 9, True, 0), (3, 9, True, 1), (9, 2, False, 1), (99, 99, False, 1)],
)
def test_the_wait_for_the_api(
    away: int, over_after: int, returned: bool, warned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the API's return, with the run, or after ten tries here; one warning is enough."""
    tries, asked, warnings = itertools.count(), itertools.count(), list[str]()
    now = itertools.count(0.0)
    monkeypatch.setattr(prefect_api, "is_reachable", lambda: next(tries) >= away)
    clock = SimpleNamespace(monotonic=lambda: next(now), sleep=lambda _s: None)
    monkeypatch.setattr(prefect_api, "time", clock)
    assert prefect_api.wait(warnings.append, lambda: next(asked) >= over_after, 10.0) is returned
    assert len(warnings) == warned
    assert next(tries) <= 12
