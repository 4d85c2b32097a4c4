"""Are there known vulnerabilities in what the hash locks name? Asks the package index that pip is set up for.

`python deployments/advisories.py [REQUIREMENTS...]`. Where the index has the JSON API with its `vulnerabilities`, each
locked version is asked for once. Exit code 0: none are known, or the index does not offer them (it says which); 1: some
are; 2: not all could be asked.
"""

from __future__ import annotations

import ast
import base64
import concurrent.futures
import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ferry.core import escaped, redact

LOCKS = (
    "requirements.txt", "requirements-demo.txt", "requirements-dev.txt", "requirements-prefect-newest.txt",
    "requirements-bench.txt", "requirements-stores.txt",
)  # fmt: skip
AT_ONCE = 8
ONE_S, ALL_S = 10.0, 120.0
MOST_BYTES = 16 << 20  # a project's answer names each of its files
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")

Locked = tuple[str, str]  # name, version


class NotOffered(Exception):
    """The index has no such API."""


def locked(paths: Iterable[Path]) -> list[Locked]:
    """Names and versions in hash-locked requirements files, each once."""
    found = {
        (match[1].lower(), match[2])
        for path in paths
        for line in path.read_text().splitlines()
        if (match := _PINNED.match(line))
    }
    return sorted(found)


def index_url() -> str | None:
    """The index that pip asks: its environment, its configuration, its default."""
    listed = subprocess.run(  # `pip config get` reads one file alone
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    found = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    for key in (":env:.index-url", "install.index-url", "global.index-url"):
        if key in found:
            return str(ast.literal_eval(found[key])).strip()
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return None
    return str(PyPI.simple_url)


class Index:
    """The JSON API beside a simple index: `<base>/pypi/NAME/VERSION/json`."""

    def __init__(self, simple_url: str) -> None:
        parts = urlsplit(simple_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NotOffered(f"{redact(simple_url)} is no http(s) index")
        host = parts.netloc.rpartition("@")[2]
        path = re.sub(r"/(\+?simple)/?$", "", parts.path.rstrip("/"))
        self._base = f"{parts.scheme}://{host}{path}/pypi"
        self.shown = redact(simple_url)
        self._authorization = ""
        if parts.username:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._authorization = "Basic " + base64.b64encode(user.encode()).decode()
        self._context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)

    def vulnerabilities(self, package: Locked, deadline: float) -> list[dict[str, Any]]:
        """What is known of one version. Raises NotOffered, and OSError where no answer comes."""
        name, version = package
        request = urllib.request.Request(f"{self._base}/{name}/{version}/json", headers={"Accept": "application/json"})
        if self._authorization:  # for this host: not for one that it redirects to
            request.add_unredirected_header("Authorization", self._authorization)
        left = min(ONE_S, deadline - time.monotonic())
        if left <= 0:
            raise TimeoutError("no time is left")
        try:
            with urllib.request.urlopen(request, timeout=left, context=self._context) as answer:
                data = answer.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise NotOffered(f"HTTP {error.code}") from None
        try:
            found = json.loads(data) if len(data) <= MOST_BYTES else None
        except ValueError:
            found = None
        known = found.get("vulnerabilities") if isinstance(found, dict) else None
        if not isinstance(known, list):
            raise NotOffered("its answer names no vulnerabilities")
        return [one for one in known if isinstance(one, dict) and not one.get("withdrawn")]


def check(index: Index, packages: list[Locked], within_s: float = ALL_S) -> tuple[dict[Locked, list[Any]], list[str]]:
    """What is known, by package, and of which packages nothing could be learned. Raises NotOffered."""
    deadline = time.monotonic() + within_s
    known: dict[Locked, list[Any]] = {}
    unanswered: list[str] = []
    refused: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        asked = {pool.submit(index.vulnerabilities, package, deadline): package for package in packages}
        for done in concurrent.futures.as_completed(asked):
            name, version = asked[done]
            try:
                if found := done.result():
                    known[name, version] = found
            except NotOffered as error:
                refused.append(f"{name} {version}: {error}")
            except OSError as error:
                unanswered.append(f"{name} {version}: {getattr(error, 'reason', error)}")
    if refused and len(refused) == len(packages):
        raise NotOffered(min(refused))
    return known, sorted(unanswered + refused)


def told(package: Locked, one: dict[str, Any]) -> str:
    """One known vulnerability as a line."""
    names = [str(one.get("id", "?")), *map(str, one.get("aliases") or ())]
    fixed = ", ".join(map(str, one.get("fixed_in") or ())) or "no version"
    text = str(one.get("summary") or one.get("details") or "").partition("\n")[0][:160]
    return escaped(f"{package[0]} {package[1]}: {' '.join(names)}; fixed in {fixed}. {text}".rstrip())


def main(arguments: list[str]) -> int:
    packages = locked(Path(name) for name in arguments or LOCKS)
    address = index_url()
    if address is None:
        print("pip names no index; nothing was checked")
        return 2
    try:
        index = Index(address)
        known, unanswered = check(index, packages)
    except NotOffered as error:
        print(f"the package index that pip is set up for does not offer known vulnerabilities ({escaped(str(error))}).")
        print("Nothing was checked. Set PIP_INDEX_URL to one that does, for this command alone.")
        return 0
    for package, found in sorted(known.items()):
        for one in found:
            print(told(package, one))
    for line in unanswered:
        print(f"not checked: {escaped(line)}")
    checked = len(packages) - len(unanswered)
    print(f"{checked} of {len(packages)} locked versions checked, {len(known)} of them with known vulnerabilities")
    return 1 if known else 2 if unanswered else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
