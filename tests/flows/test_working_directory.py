"""What is left of the working directory when a command leaves it: the files and the home that the environment names."""

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
    """A file that is there, and Prefect's home whether it is or not, are the same ones afterwards."""
    (tmp_path / "aws.ini").touch()
    monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        working_directory.leave()
        assert Path.cwd() == Path("/")
        assert os.environ[name] == expected.format(here=tmp_path)
