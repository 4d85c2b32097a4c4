"""Fixtures for all tests: a real S3 server, a bucket of one's own, an origin that misbehaves on request."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from demo.origin import Origin
from demo.s3 import S3Server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS for the whole session. A test that stops it starts it again."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop(within_s=0)


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A new, empty bucket on ``s3``; its name."""
    name = f"test-{secrets.token_hex(6)}"
    s3.make_bucket(name)
    return name


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An origin without objects, listening."""
    with Origin() as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow modules first: one that begins last keeps a core waiting for it."""
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "pytestmark"))
