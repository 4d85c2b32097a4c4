"""Files and the home that the environment names stay the same when a command leaves the working directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.server import working_directory


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("AWS_CONFIG_FILE", "aws.ini", "{here}/aws.ini"),
        ("AWS_CONFIG_FILE", "not-there.ini", "not-there.ini"),
        ("AWS_CONFIG_FILE", "/etc/aws.ini", "/etc/aws.ini"),
        ("PREFECT_HOME", "home", "{here}/home"),  # Prefect makes it: in `/`, where this names nothing
        ("PREFECT_HOME", "~/home", "~/home"),
        ("IMAGE_NAME", "aws.ini", "aws.ini"),
    ],
)
def test_what_the_environment_names(
    name: str, value: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths of existing files, and PREFECT_HOME in any case, become absolute."""
    (tmp_path / "aws.ini").touch()
    monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        working_directory.leave()
        assert Path.cwd() == Path("/")
        assert os.environ[name] == expected.format(here=tmp_path)
