"""Attributes between all kinds of stores: nothing is lost that the other side can hold, and a loss has its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from ferry.core import word_of
from tests.servers.stores import Azurite, FakeGcsServer, LocalDirectory, Moto, StoreServer
from tests.stores.directions import copy_all, expected_loss, of_source, same

pytestmark = pytest.mark.slow

SERVERS: dict[str, type[StoreServer]] = {each.name: each for each in (Moto, FakeGcsServer, Azurite, LocalDirectory)}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, StoreServer]]:
    """Servers that run, by name."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(each()) for name, each in SERVERS.items() if each.missing() is None}


@pytest.mark.parametrize(("source", "destination"), [*product(SERVERS, SERVERS)])
def test_each_direction(source: str, destination: str, servers: dict[str, StoreServer], tmp_path: Path) -> None:
    """The copy has what the source has, without what the other side cannot hold, and as a verification will see it."""
    for name in (source, destination):
        if name not in servers:
            pytest.skip(SERVERS[name].missing() or "")
    scheme, to = servers[source].scheme, servers[destination].scheme
    for name, found in copy_all(servers[source], servers[destination], tmp_path).items():
        if scheme != "file":
            assert same(found.source, of_source(name, scheme)), (name, "at the source", found)
        kept = {key: value for key, value in found.source.items() if key not in expected_loss(found.source, to)}
        kept.setdefault("Content-Type", "image/jpeg")
        if to != "file":
            assert same(found.copy, kept), (name, found)
        assert found.lost == {word_of(each) for each in expected_loss(found.source, to)}, (name, found)
