"""The compose file, by the Compose specification's own schema, and by what it must say. It is not started here."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from tests.flows.site import UNITS, needs_postgresql, unit
from tests.support.postgres import Postgres

FOLDER = UNITS.parent / "compose"
FILE = FOLDER / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
    return found


def test_the_schema() -> None:
    """It is valid by the schema of the Compose specification."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_docker_compose_reads_it() -> None:
    """`docker compose config` takes it, where that is installed; it needs no daemon."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no `docker compose` here")
    subprocess.run([docker, "compose", "-f", str(FILE), "config", "--quiet"], check=True)


def test_server_database_worker_and_nothing_else(services: dict[str, dict[str, Any]]) -> None:
    """Three services that come back; one port, on loopback; no secret but in files; nothing is root's in ours."""
    assert set(services) == {"server", "database", "worker"}
    assert [port for service in services.values() for port in service.get("ports", [])] == ["127.0.0.1:4200:4200"]
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert ":" in service["image"], name
        assert "latest" not in service["image"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        for variable, value in service["environment"].items():
            assert value.startswith("/run/secrets/") or not {"PASSWORD", "AUTH", "KEY"} & set(variable.split("_")), (
                variable
            )
    for name in ("server", "worker"):
        assert (services[name]["read_only"], services[name]["cap_drop"]) == (True, ["ALL"])


def test_who_waits_for_whom(services: dict[str, dict[str, Any]]) -> None:
    """Server after a healthy database, worker after a healthy server; what must last is in volumes."""
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    healthy = {"condition": "service_healthy"}
    assert waits == {"database": {}, "server": {"database": healthy}, "worker": {"server": healthy}}
    assert all("healthcheck" in service for service in services.values())
    assert "worker:/var/lib/ferry" in services["worker"]["volumes"]  # PREFECT_HOME on a read-only file system
    volumes = yaml.safe_load(FILE.read_text())["volumes"]
    kept = {volume.partition(":")[0] for service in services.values() for volume in service["volumes"]}
    assert kept - {"./manifests"} == set(volumes)


def test_it_says_of_prefect_what_the_units_say(services: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """But for places and the database's address, the server is set as the unit sets it, which is tried."""
    elsewhere = {"PREFECT_HOME", "PREFECT_SERVER_UI_STATIC_DIRECTORY", "PREFECT_SERVER_DATABASE_CONNECTION_URL"}
    of_the_image = {"PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_LOGGING_COLORS"}
    tried = unit("server", {}, tmp_path / "log").stated
    expected = {name: value for name, value in tried.items() if name.startswith("PREFECT_")}
    for name in elsewhere | of_the_image:
        expected.pop(name)
    stated = {n: v for n, v in services["server"]["environment"].items() if "_DATABASE_" not in n}
    assert stated == expected


def test_the_database_is_found_with_these_settings(services: dict[str, dict[str, Any]]) -> None:
    """Prefect makes of them, and of the password in its file, an address that a real PostgreSQL lets in."""
    needs_postgresql()
    given = {n: v for n, v in services["server"]["environment"].items() if "_DATABASE_" in n}
    password = "p@ss/word:#1"
    with Postgres(password) as database:
        given |= {"PREFECT_SERVER_DATABASE_HOST": "127.0.0.1", "PREFECT_SERVER_DATABASE_PORT": str(database.port)}
        given["PREFECT_SERVER_DATABASE_PASSWORD"] = password
        code = "from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL as url; print(url.value())"
        url = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True).stdout
        assert asyncio.run(who_am_i(url.strip().replace("+asyncpg", ""))) == "prefect"


async def who_am_i(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SELECT current_user"))
    finally:
        await connection.close()
