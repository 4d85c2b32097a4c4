"""Files of redirects in the servers that read them: odd addresses lead to the right place, others lead nowhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from ferry.cutover import export
from ferry.cutover.redirects import TARGETS
from tests.support import webservers
from tests.support.proxies import Program, find
from tests.support.redirects import Visit, Visitor, odd_addresses, other_spellings, stored

pytestmark = pytest.mark.slow
AT = datetime(2026, 1, 2, tzinfo=UTC)
COUNT = 5_000


class Server(NamedTuple):
    """A server, the format that it loads, and how to start it with a file."""

    program: str
    form: str
    start: Callable[[Path, Path], Program]


SERVERS = [
    Server("nginx", "nginx-map", webservers.Nginx),
    Server("apache2", "apache-rewritemap", webservers.Apache),
    Server("apache2", "apache-rewritemap", webservers.ApacheDatabase),
    Server("haproxy", "haproxy-map", webservers.HAProxy),
    Server("caddy", "caddy", webservers.Caddy),
]


@pytest.mark.parametrize("server", SERVERS, ids=[server.start.__name__ for server in SERVERS])
def test_odd_addresses(server: Server, tmp_path: Path) -> None:
    """Each address, in each spelling of its path, answers 301 to its own new address. Rows without a copy do not."""
    if find(server.program) is None:
        pytest.skip(webservers.missing(server.program))
    sight = TARGETS[server.form].sight
    odd = odd_addresses(COUNT, min(sight.longest, sight.longest_pair - 100))
    state, job = stored(tmp_path, odd.rows)
    file = tmp_path / "redirects"
    written = export(state, job, file, at=AT, form=server.form)
    wanted = sum(1 for visit in odd.visits if visit.location)
    assert wanted >= COUNT
    assert written.rows == wanted, written.left_out
    wrong: list[tuple[Visit, str, int, str]] = []

    def check(visitor: Visitor, visit: Visit, target: str) -> None:
        status, location = visitor.ask(visit.host, target)
        if (status, location) != ((301, visit.location) if visit.location else (404, "")):
            wrong.append((visit, target, status, location))

    with server.start(tmp_path / "server", file) as running, Visitor(running.port) as visitor:
        for visit in odd.visits:
            check(visitor, visit, visit.target)
        for visit in random.Random(2).sample(odd.visits, 500):
            for target in other_spellings(visit):
                check(visitor, visit, target)
        for visit in (visit for visit in odd.visits if "?" not in visit.target):
            check(visitor, visit, visit.target + "?utm_source=x")
    assert not wrong, f"{len(wrong)} of {len(odd.visits)}, such as {wrong[:5]}"
