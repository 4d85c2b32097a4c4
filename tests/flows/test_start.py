"""Measures for a faster start and less memory do not change results."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ferry import __version__
from flows.server import api_address
from flows.server.home import PREPARED
from flows.server.local import LocalServer

ARROW = """
import io, sys
from ferry.core import limit_arrow_memory
limit_arrow_memory()
import pyarrow as pa, pyarrow.parquet as pq
from ferry.state.parquet import to_bytes
table = pa.table({"key": ["a", None], "size": [1, 2]})
assert pq.ParquetFile(io.BytesIO(to_bytes(table))).read().to_pylist() == table.to_pylist()
loaded = "numpy" in sys.modules, "pandas" in sys.modules
import numpy
print(*loaded, numpy.zeros(1).sum(), pa.default_memory_pool().backend_name)
"""


def test_limit_arrow_memory() -> None:
    """Arrow reads and writes without NumPy and pandas, with the system's allocator; NumPy can be imported later."""
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    command = [sys.executable, "-c", ARROW]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, ["False", "False", "0.0", "system"], "")


def test_a_process_with_other_code_keeps_numpy_for_arrow() -> None:
    """A program that imports the flow can convert Arrow's arrays; pandas is not loaded by that."""
    code = (
        "import flows.migrate, sys, pyarrow as pa; print('pandas' in sys.modules, pa.array([1]).to_numpy().sum(), "
        "pa.table({'a': [1]}).to_pandas()['a'].sum())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout.split(), ended.stderr) == (["False", "1", "1"], "")


@pytest.mark.parametrize(("loaded", "ended"), [("", ""), ("sys.modules['prefect'] = sys;", "exit handlers\n")])
def test_only_prefect_needs_the_end_of_python(loaded: str, ended: str) -> None:
    """Exit handlers run for Prefect. Other commands end at once, with what they wrote."""
    code = (
        f"import atexit, sys; {loaded} atexit.register(print, 'exit handlers')\n"
        "sys.argv = ['ferry', '--version']\nfrom flows.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n{ended}", "")


def test_closed_streams_are_open_again(tmp_path: Path) -> None:
    """A caller may close standard streams. The first file that is opened then would receive what is printed, here or in
    a child process."""
    numbers = "[stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)]"
    code = (
        "import subprocess, sys, flows.cli.main as command\nfrom flows.__main__ import main\n"
        f"child = [sys.executable, '-c', 'import sys; {numbers}']\n"
        f"told = lambda: (subprocess.call(child), {numbers})\n"
        "command.main = lambda: open(sys.argv[1], 'w').write(str(told()))\nmain()"
    )
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, "-c", code, str(tmp_path / "told")]
    subprocess.run(command, timeout=60, check=True)
    assert (tmp_path / "told").read_text() == "(0, [0, 1, 2])"


def test_a_reader_that_left_changes_no_exit_code(tmp_path: Path) -> None:
    """The exit code of an error stays, even if the JSON about it is not read."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-P", "-m", "flows", "status", str(tmp_path / "none.yaml"), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr.count("does not exist")) == (2, 1)


def _environment_of(started: LocalServer) -> dict[str, str]:
    assert started._process is not None
    environ = Path(f"/proc/{started._process.pid}/environ")
    while not (raw := environ.read_bytes()):  # it is empty until the program runs
        time.sleep(0.01)
    return dict(pair.split("=", 1) for pair in os.fsdecode(raw).split("\0") if "=" in pair)


@pytest.mark.slow
def test_a_database_is_prepared_once_for_each_version_of_prefect(tmp_path: Path) -> None:
    """Migrations are skipped only on a database of the same version of Prefect."""
    home = tmp_path / "home"
    with LocalServer(home) as first:
        first.stop()
    assert (home / "prepared-by").read_text() == api_address.VERSION
    again = LocalServer(home)
    again.start()
    assert PREPARED.items() <= _environment_of(again).items()
    again.stop()
    (home / "prepared-by").write_text("3.0.0")  # the last server here was of another version: this one migrates
    with LocalServer(home) as newer:
        assert not PREPARED.keys() & _environment_of(newer).keys()
        newer.stop()
    assert (home / "prepared-by").read_text() == api_address.VERSION
    with sqlite3.connect(home / "prefect.db") as database:
        assert database.execute("select count(*) from flow_run").fetchall() == [(0,)]


@pytest.mark.slow
def test_a_home_whose_database_was_deleted_is_prepared_anew(tmp_path: Path) -> None:
    """A `prepared-by` without its database is ignored, and the template is used."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "prepared-by").write_text(api_address.VERSION)
    with LocalServer(home), sqlite3.connect(home / "prefect.db") as database:
        assert database.execute("select count(*) from flow").fetchall() == [(0,)]
