"""A real PostgreSQL on this machine, of the distribution's package: a cluster of one's own, thrown away at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.ports import free_ports

START_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0
PACKAGE_USER = "postgres"  # whom the package makes: PostgreSQL does not run as root
APT_LINE = "apt-get update && apt-get install -y postgresql"

# What is thrown away need not survive a power cut.
SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def find_programs() -> Path | None:
    """The folder of initdb and postgres: Debian has one for each version, and they are not on the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class Postgres:
    """``with Postgres() as database:`` a cluster with the database ``prefect`` of the role ``prefect``.

    It listens on a Unix socket in ``sockets`` and on ``port`` of loopback. On the socket the kernel says who asks, as
    on a Debian machine (peer): whoever started this may be ``prefect``. On loopback ``password`` is asked for.
    As root it runs as ``postgres``; it is ended with this process.
    """

    def __init__(self, password: str = "unused") -> None:
        programs = find_programs()
        if programs is None:
            raise RuntimeError(f"PostgreSQL is not installed. Run this, then try again:  sudo sh -c '{APT_LINE}'")
        self._programs = programs
        self._temporary = tempfile.TemporaryDirectory(prefix="ferry-pg-")  # short: a socket's path has 107 bytes
        self.folder = Path(self._temporary.name)
        self.sockets = self.folder / "sockets"
        self.port = free_ports(1)[0]
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self._as: list[str] = []  # the command that changes to another user
        if os.geteuid() == 0:
            self._as = [f"--reuid={PACKAGE_USER}", f"--regid={PACKAGE_USER}", "--clear-groups"]

    @property
    def url(self) -> str:
        """As the unit of the server has it, but for folder and port."""
        return f"postgresql+asyncpg://prefect@/prefect?host={self.sockets}&port={self.port}"

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
            self._sql("postgres", f"CREATE ROLE prefect LOGIN PASSWORD '{self._password}'")
            self._sql("postgres", "CREATE DATABASE prefect OWNER prefect")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._temporary.cleanup()

    def start(self) -> None:
        """Starts it and waits until it answers. Raises RuntimeError with the end of its log when it does not."""
        log = self.folder / "postgres.log"
        options = {**SETTINGS, "unix_socket_directories": str(self.sockets), "listen_addresses": "127.0.0.1"}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(
                    "postgres", "-D", str(self.folder / "data"), "-p", str(self.port),
                    *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
                ),
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            ready = [str(self._programs / "pg_isready"), "-q", "-h", str(self.sockets), "-p", str(self.port)]
            if subprocess.run(ready, check=False).returncode == 0:
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"PostgreSQL did not start. The end of its log:\n{log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Ends it as `systemctl stop postgresql` does: connections are cut, nothing is lost. Safe to call twice."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def query(self, sql: str) -> list[list[str]]:
        """What `psql` answers, as the role ``prefect``: a list of cells for each row."""
        return [line.split("|") for line in self._sql("prefect", sql, user="prefect").splitlines()]

    def dump(self) -> str:
        """All that the database holds, as text."""
        pg_dump = [
            str(self._programs / "pg_dump"), "-h", str(self.sockets), "-p", str(self.port), "-U", "prefect", "prefect"
        ]  # fmt: skip
        return subprocess.run(pg_dump, check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder).stdout

    def _make(self) -> None:
        if self._as:
            shutil.chown(self.folder, PACKAGE_USER, PACKAGE_USER)
            self.folder.chmod(0o755)  # the socket is asked for by us, who need not be root
        initdb = self._command(
            "initdb", "-D", str(self.folder / "data"), "--no-sync", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8",
            "--auth-local=peer", "--auth-host=scram-sha-256",
        )  # fmt: skip
        subprocess.run(initdb, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        self.sockets.mkdir()
        if self._as:
            shutil.chown(self.sockets, PACKAGE_USER, PACKAGE_USER)
        me = pwd.getpwuid(os.geteuid()).pw_name
        data = self.folder / "data"
        (data / "pg_hba.conf").write_text(
            "local all all peer map=whoever-started-this\nhost prefect prefect 127.0.0.1/32 scram-sha-256\n"
        )
        (data / "pg_ident.conf").write_text(f"whoever-started-this {me} prefect\nwhoever-started-this {me} postgres\n")

    def _sql(self, database: str, sql: str, user: str = "postgres") -> str:
        psql = [
            str(self._programs / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1",
            "-h", str(self.sockets), "-p", str(self.port), "-U", user, "-d", database, "-c", sql,
        ]  # fmt: skip
        return subprocess.run(psql, check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder).stdout

    def _command(self, program: str, *arguments: str) -> list[str]:
        """A program that ends with this process. setpriv asks for that signal last: a change of user forgets it."""
        return ["setpriv", "--pdeathsig=QUIT", *self._as, "--", str(self._programs / program), *arguments]
