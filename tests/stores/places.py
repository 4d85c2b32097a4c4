"""Places that whole jobs move objects between: buckets of each provider, a directory, and an origin.

Objects are put there and read there by the provider's own library or as plain files, never by Ferry.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from demo.origin import Origin
from demo.s3 import S3Server
from tests.servers.stores.azurite import Azurite
from tests.servers.stores.gcs_servers import FakeGcsServer
from tests.servers.stores.server import INSTALLED, ROOT, StoreServer

PYTHON = INSTALLED / "bin" / "python"
AZURE_KEY = "FERRY_TEST_AZURE_KEY"  # the variable with the account's key
BUCKET = "ferry-pairs"

Found = dict[str, tuple[str, str]]  # by key: SHA-256 and MD5


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects that are moved, as files of a folder whose index.json has them by their keys."""

    folder: Path
    bodies: Mapping[str, bytes]

    @classmethod
    def write(cls, folder: Path, bodies: Mapping[str, bytes]) -> Objects:
        index = {}
        for number, (key, body) in enumerate(bodies.items()):
            (folder / str(number)).write_bytes(body)
            index[key] = {"file": str(number), "content_type": f"image/{'png' if key.endswith('png') else 'jpeg'}"}
        (folder / "index.json").write_text(json.dumps({f"old/{key}": file for key, file in index.items()}))
        return cls(folder, bodies)

    @property
    def digests(self) -> Found:
        return {key: digests_of(body) for key, body in self.bodies.items()}


def digests_of(body: bytes) -> tuple[str, str]:
    return hashlib.sha256(body).hexdigest(), hashlib.md5(body).hexdigest()


class Place(ABC):
    """A source of objects below `old/`."""

    environment: Mapping[str, str] = {}  # what `ferry` needs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def fill(self, objects: Objects) -> None: ...

    @abstractmethod
    def source(self, folder: Path) -> dict[str, Any]:
        """Returns a job's settings for this source. ``folder`` is the job's."""


class Destination(Place):
    """A place that also takes objects."""

    @abstractmethod
    def destination(self, prefix: str) -> dict[str, Any]:
        """Returns a job's `destination`."""

    @abstractmethod
    def read(self, prefix: str) -> Found:
        """Returns the objects below a prefix by their keys without it.

        Raises AssertionError for an object whose MD5 is not the one that the store itself has of it.
        """


class Bucket(Destination):
    """A provider's server, and its library in a process of its own."""

    library: str
    scheme: str
    settings: dict[str, Any]  # of `source` and `destination`

    def __init__(self, url: str, user: str = "", secret: str = "") -> None:
        command = [str(PYTHON), "-m", "tests.stores.libraries", self.library, url, BUCKET, user, secret]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, question: dict[str, str]) -> Any:
        """Sends a question and returns the answer. A library that fails has its traceback on standard error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"{self.library} failed"
        return json.loads(answer)

    def fill(self, objects: Objects) -> None:
        self._ask({"put": str(objects.folder)})

    def uri(self, prefix: str) -> str:
        return f"{self.scheme}://{BUCKET}/{prefix}"

    def source(self, folder: Path) -> dict[str, Any]:
        return {"manifest": self.uri("old/"), "source": self.settings}

    def destination(self, prefix: str) -> dict[str, Any]:
        return {"uri": self.uri(prefix), **self.settings}

    def read(self, prefix: str) -> Found:
        found = self._ask({"read": prefix})
        assert {key: md5 for key, (_, md5, stored) in found.items() if md5 != stored} == {}
        return {key.removeprefix(prefix): (sha256, md5) for key, (sha256, md5, _) in found.items()}


class S3Bucket(Bucket):
    """A bucket of the SeaweedFS whose keys the command has in its environment."""

    library, scheme = "boto3", "s3"

    def __init__(self, server: S3Server) -> None:
        super().__init__(server.endpoint_url, server.access_key, server.secret_key)
        self.settings = {"endpoint_url": server.endpoint_url}


class GcsBucket(Bucket):
    library, scheme = "google-cloud-storage", "gs"

    def __init__(self, server: StoreServer) -> None:
        super().__init__(server.endpoint_url)
        self.settings = {"endpoint_url": server.endpoint_url, "credentials": "anonymous"}


class AzureBucket(Bucket):
    library, scheme = "azure-storage-blob", "az"
    environment = {AZURE_KEY: Azurite.account_key}

    def __init__(self, server: StoreServer) -> None:
        super().__init__(server.endpoint_url, Azurite.account, Azurite.account_key)
        self.settings = {"endpoint_url": server.endpoint_url, "credentials": f"env:{AZURE_KEY}"}

    def uri(self, prefix: str) -> str:
        return f"az://{Azurite.account}/{BUCKET}/{prefix}"


class Directory(Destination):
    def __init__(self, root: Path) -> None:
        self._root = root

    def fill(self, objects: Objects) -> None:
        for key, body in objects.bodies.items():
            path = self._root / "old" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)

    def source(self, folder: Path) -> dict[str, Any]:
        return {"manifest": f"file://{self._root}/old/", "source": {}}

    def destination(self, prefix: str) -> dict[str, Any]:
        return {"uri": f"file://{self._root}/{prefix}"}

    def read(self, prefix: str) -> Found:
        root = self._root / prefix
        files = [path for path in root.rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix(): digests_of(path.read_bytes()) for path in files}


class WebServer(Place):
    """An origin, whose URLs are a list."""

    def __init__(self) -> None:
        self._origin = Origin()
        self._urls: list[str] = []

    def __enter__(self) -> Self:
        self._origin.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._origin.stop()

    def fill(self, objects: Objects) -> None:
        self._urls = [self._origin.add(f"/{quote(key)}", body) for key, body in objects.bodies.items()]

    def source(self, folder: Path) -> dict[str, Any]:
        (folder / "urls.csv").write_text("\n".join(["url", *self._urls, ""]))
        return {"manifest": "urls.csv", "source": {"allow_private_addresses": ["127.0.0.1"]}}


EMULATORS: Mapping[str, tuple[type[StoreServer], Callable[[StoreServer], Bucket]]] = {
    "gcs": (FakeGcsServer, GcsBucket),
    "azure": (Azurite, AzureBucket),
}
