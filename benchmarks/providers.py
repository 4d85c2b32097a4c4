"""Processor time of Ferry's clients of S3, Google Cloud Storage and Azure Blob Storage beside the providers' own
libraries: `python -m benchmarks.providers [--quick]`.

One PUT of 40 KB, and listing per key, against a server that takes everything and answers as the providers do. Ferry's
clients and the libraries run in turn. Each library has a process of its own in `.venv-stores`, and 32 threads.
`--quick` only shows that it works.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import uvloop

from benchmarks.null_stores import DATA, PAGE_KEYS
from benchmarks.place import ROOT
from benchmarks.report import table
from benchmarks.turns import AT_ONCE, ROUNDS, Took, at_once
from ferry.core.body import small_body
from ferry.http import Network
from ferry.storage.azure import AzureContainer, SharedKey
from ferry.storage.gcs import Gcs, GoogleTokens
from ferry.storage.provider import Digests, Provider
from ferry.storage.s3 import S3, Keys, StaticCredentials

OBJECTS, LIBRARY_OBJECTS, KEYS = 8_000, 2_000, 20_000  # in one round
QUICK = 20  # a twentieth of the objects
ATTRIBUTES = {"Content-Type": "image/jpeg"}
LIMITS = {"timeout_s": 60.0, "read_s": 30.0, "connections": 64}
PYTHON = ROOT / ".venv-stores" / "bin" / "python"

S3_NAME, GCS_NAME, AZURE_NAME = "S3", "Google Cloud Storage", "Azure Blob Storage"
DIGESTS = "MD5 and SHA-256 alone"
LIBRARIES = {"boto3": "bucket", "google-cloud-storage": "storage", "azure-storage-blob": "account"}  # their page
MAX_OF_S3, MIN_OF_LIBRARY, MAX_US_PER_KEY = 1.15, 3.0, 12.0  # goals


@dataclass
class Client:
    """What one client does, and the times that it took."""

    put: Callable[[int], Awaitable[Took]]  # so many objects
    list_pages: Callable[[int], Awaitable[Took]] | None
    objects: int  # in one round
    page_keys: int = 0
    puts: list[Took] = field(default_factory=list)
    lists: list[Took] = field(default_factory=list)

    @property
    def put_ms(self) -> float:
        """Milliseconds of processor time for one object."""
        return statistics.median(cpu for _, cpu in self.puts) / self.objects * 1e3

    @property
    def objects_per_s(self) -> float:
        return self.objects / statistics.median(wall for wall, _ in self.puts)

    @property
    def list_us(self) -> float | None:
        """Microseconds of processor time for one key of a listing."""
        return statistics.median(cpu for _, cpu in self.lists) / KEYS * 1e6 if self.lists else None


class Library:
    """A library's process, which measures itself (benchmarks/peers/libraries.py)."""

    def __init__(self, name: str, url: str) -> None:
        command = [str(PYTHON), "-m", "benchmarks.peers.libraries", name, url, str(AT_ONCE), str(len(DATA))]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version: str = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    async def do(self, what: str, count: int) -> Took:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        wall, cpu = self._answer().split()
        return float(wall), float(cpu)


class Held:
    """Credentials of google-auth with a token that lasts."""

    token, expiry = "t" * 200, None

    def refresh(self, request: object) -> None:
        pass


@contextlib.asynccontextmanager
async def ferry_clients(url: str) -> AsyncIterator[dict[str, Client]]:
    s3 = S3(url, "bucket", "us-east-1", StaticCredentials(Keys("k", "s", None)), **LIMITS)  # type: ignore[arg-type]
    gcs = Gcs(url, "b", GoogleTokens(lambda _: Held(), Network()), **LIMITS)  # type: ignore[arg-type]
    key = SharedKey("account", "a2V5" * 16)
    azure = AzureContainer("account", "box", key, endpoint_url=f"{url}/account", **LIMITS)  # type: ignore[arg-type]

    async def put(provider: Provider, number: int) -> None:
        body = small_body(DATA)
        digests = Digests(body.md5, body.sha256)
        sent = await provider.put(f"images/{number}.jpg", DATA, digests, ATTRIBUTES, create=True)
        assert sent.sha256 == body.sha256 or sent.md5 == body.md5

    async def page(provider: Provider, keys: int) -> None:
        assert len((await provider.page("images/", "source")).objects) == keys

    async def only_digests(number: int) -> None:
        small_body(DATA)

    def puts(put: Callable[[int], Awaitable[None]], count: int) -> Awaitable[Took]:
        return at_once(put(number) for number in range(count))

    def pages(page: Callable[[], Awaitable[None]], count: int) -> Awaitable[Took]:
        return at_once((page() for _ in range(count)), workers=1)

    def client(provider: Provider, keys: int) -> Client:
        return Client(
            partial(puts, partial(put, provider)), partial(pages, partial(page, provider, keys)), OBJECTS, keys
        )

    yield {
        DIGESTS: Client(partial(puts, only_digests), None, OBJECTS),
        S3_NAME: client(s3, PAGE_KEYS["bucket"]),
        GCS_NAME: client(gcs, PAGE_KEYS["storage"]),
        AZURE_NAME: client(azure, PAGE_KEYS["account"]),
    }
    for provider in (s3, gcs, azure):
        await provider.close()


async def measure(url: str, libraries: Mapping[str, Library], *, quick: bool) -> dict[str, Client]:
    """Runs all clients in turn. Each round begins with another one; a first one that opens connections is left out."""
    async with ferry_clients(url) as clients:
        for name, library in libraries.items():
            put, listing = partial(library.do, "put"), partial(library.do, "list")
            clients[name] = Client(put, listing, LIBRARY_OBJECTS, PAGE_KEYS[LIBRARIES[name]])
        order = list(clients.values())
        for client in order:
            client.objects //= QUICK if quick else 1
            await client.put(500)
        for turn in range(1 if quick else ROUNDS):
            for client in order[turn:] + order[:turn]:
                client.puts.append(await client.put(client.objects))
                if client.list_pages is not None:
                    client.lists.append(await client.list_pages(KEYS // client.page_keys))
        return clients


def goals(clients: Mapping[str, Client]) -> Iterator[list[str]]:
    """Yields the goals with what was measured, as lines of a table."""
    s3 = clients[S3_NAME].put_ms
    for name, library in ((GCS_NAME, "google-cloud-storage"), (AZURE_NAME, "azure-storage-blob")):
        ratio, less = clients[name].put_ms / s3, clients[library].put_ms / clients[name].put_ms
        yield [f"{name}: CPU of one PUT, of S3's: {MAX_OF_S3}x or less", f"{ratio:.2f}x", _met(ratio <= MAX_OF_S3)]
        goal = f"{name}: {library}'s CPU of one PUT: {MIN_OF_LIBRARY:.0f}x or more"
        yield [goal, f"{less:.1f}x", _met(less >= MIN_OF_LIBRARY)]
    for name in (S3_NAME, GCS_NAME, AZURE_NAME):
        used = clients[name].list_us or 0.0
        yield [
            f"{name}: listing: {MAX_US_PER_KEY:.0f} us a key or less",
            f"{used:.1f} us",
            _met(used <= MAX_US_PER_KEY),
        ]


def _met(is_met: bool) -> str:
    return "met" if is_met else "**not met**"


def report(clients: Mapping[str, Client], versions: Mapping[str, str]) -> str:
    rows = [
        [
            f"{name} {versions[name]}, {AT_ONCE} threads" if name in versions else name,
            f"{client.put_ms:.3f}",
            f"{client.put_ms / clients[S3_NAME].put_ms:.2f}x",
            f"{client.objects_per_s:,.0f}",
            "" if client.list_us is None else f"{client.list_us:.1f}",
        ]
        for name, client in clients.items()
    ]
    head = ["client", "CPU of a PUT, ms", "of S3's", "objects/s", "CPU of listing a key, us"]
    return (
        f"{len(DATA):,} bytes, {AT_ONCE} at once, {len(clients[S3_NAME].puts)} rounds in turn, medians. "
        f"Ferry's clients compute both digests.\n\n"
        f"{table(head, rows)}\n\n{table(['goal', 'measured', 'verdict'], list(goals(clients)))}"
    )


def main() -> None:
    if not PYTHON.exists():
        sys.exit(f"{PYTHON.relative_to(ROOT)} is missing. Run `make stores`, then try again")
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "benchmarks.null_stores"]
        server = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE))
        stack.callback(server.terminate)
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        libraries = {name: stack.enter_context(Library(name, url)) for name in LIBRARIES}
        clients = uvloop.run(measure(url, libraries, quick=sys.argv[1:] == ["--quick"]))
        print(report(clients, {name: library.version for name, library in libraries.items()}))


if __name__ == "__main__":
    main()
