"""Ports for servers of the demo and of tests."""

from __future__ import annotations

import pytest

from demo import ports
from ferry.http.address_filter import OTHER_SERVICES


def test_no_port_that_ferry_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An origin never gets a port to which Ferry sends no HTTP: its rows would fail as blocked, once in a while."""
    refused = {port for port in OTHER_SERVICES if ports._LOW <= port < ports._HIGH}
    assert refused == ports._NOT_FOR_HTTP
    (refused_port,) = refused
    monkeypatch.setattr(ports, "_LOW", refused_port)
    with pytest.raises(RuntimeError, match="no 1 free ports"):
        ports.free_ports(1, below=refused_port + 1)
