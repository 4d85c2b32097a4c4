"""Fixtures for all tests: a real S3 server, a bucket of one's own, an origin that misbehaves, the `ferry` command."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow  # noqa: F401 - whole, before Ferry loads it without NumPy: tests read its files with pandas
import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from demo.origin import Origin
from demo.s3 import S3Server
from flows.server.local import LocalServer
from tests.flows.project import ROOT, Cli, Prefect, Project, processes_with
from tests.support.servers import Address, SharedS3

gc.disable()  # until all tests are collected: what they import stays, and looking through it takes a sixth of that time
LONG_S = 600.0  # tests that may take so long begin first
_S3 = pytest.StashKey[SharedS3]()


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands out the tests starts the S3 server, where several processes run them."""
    if config.getoption("numprocesses", None) and not config.option.collectonly and not hasattr(config, "workerinput"):
        config.stash[_S3] = SharedS3()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist: what each process of the run is told."""
    node.workerinput["s3"] = node.config.stash[_S3].address()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _S3 in config.stash:
        config.stash[_S3].stop()


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS for the whole run: no test stops or suspends it."""
    shared = getattr(request.config, "workerinput", {}).get("s3")
    if shared is not None:
        yield Address(**shared).s3
        return
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


@pytest.fixture(scope="session")
def prefect_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """One Prefect server for all tests of the command."""
    with LocalServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="session")
def prefect_api(prefect_local: LocalServer) -> Prefect:
    return Prefect(prefect_local.url, prefect_local.home)


@pytest.fixture(scope="session")
def cli(s3: S3Server, prefect_local: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command, ready to be run."""
    command = Cli(s3, prefect_local, tmp_path_factory.mktemp("home"))
    yield command
    command.close()


@pytest.fixture
def project(cli: Cli, bucket: str, tmp_path: Path) -> Iterator[Project]:
    """An empty bucket and a folder with a job for it. What a failed test left running there is ended."""
    made = Project(tmp_path, cli, bucket)
    yield made
    for process in made.forked:
        process.kill()
    for line in processes_with(str(tmp_path), servers=True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.partition(":")[0]), signal.SIGKILL)


class ModuleScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of a module with fixtures of its own stay in one process, which makes these once; others go anywhere."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if has_module_fixtures(path) else nodeid


@functools.cache
def has_module_fixtures(path: str) -> bool:
    return 'scope="module"' in (ROOT / path).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ModuleScheduling:
    return ModuleScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a matrix only the first case is not slow. The longest tests are first, then modules with marks: a long test
    that begins last keeps a core waiting."""
    items.sort(key=lambda item: (_seconds(item) < LONG_S, not hasattr(getattr(item, "module", None), "pytestmark")))
    begun: set[str] = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in begun and item.get_closest_marker("matrix"):
            item.add_marker(pytest.mark.slow)
        begun.add(test)


def _seconds(item: pytest.Item) -> float:
    """The time that a test may take, by its mark."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark else 0.0


def pytest_collection_finish() -> None:
    """Thousands of cases stay for the whole run: the garbage collector need not look through them each time."""
    gc.collect()
    gc.freeze()
    gc.enable()
