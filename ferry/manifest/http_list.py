"""Lists over HTTP: a `requests` session over Ferry's own connections.

On its own, requests connects to whatever a name resolves to, and takes passwords from ~/.netrc. Here it makes the
requests and reads the answers, and an Origin sends them: behind the address filter, with the redirects, credentials,
proxies, certificates, timeouts and limits that objects have (docs/decisions/0046).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from ferry.core import ErrorClass, ObjectError, Tries, disk_error
from ferry.http import AddressFilter, Auth, Network, Origin, Resolver
from ferry.job import Job

MAX_PAGE_BYTES = 64 << 20
_IN_MEMORY_BYTES = 8 << 20  # of a page; a longer one is in a file


class OriginAdapter(BaseAdapter):
    """Sends GET requests of a session through an Origin. ``open_file`` opens a file for each body.

    A response is complete when it is returned. Raises ObjectError as :meth:`Origin.download` does, for each status but
    200 and 203. What requests passes besides the request (timeouts, proxies, certificates) is not used.
    """

    def __init__(self, make: Callable[[], Origin], open_file: Callable[[], BinaryIO], max_bytes: int) -> None:
        """``make`` is called in the event loop that the adapter's requests have."""
        super().__init__()
        self._runner = asyncio.Runner()
        self._open_file = open_file
        self._max_bytes = max_bytes

        async def made() -> Origin:
            return make()

        self._origin = self._runner.run(made())

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """Sends a request and returns its response, with its body in a file."""
        assert request.url is not None
        headers = {name: value if isinstance(value, str) else value.decode() for name, value in request.headers.items()}
        file = self._open_file()
        try:
            done = self._runner.run(self._origin.download(request.url, headers, file, self._max_bytes))
            _rewind(file)
        except BaseException:
            file.close()
            raise
        response = requests.Response()
        response.status_code, response.url, response.request, response.raw = done.status, done.url, request, file
        for name in done.headers:
            response.headers[name] = ", ".join(done.headers.getall(name))
        return response

    def close(self) -> None:
        """Closes the connections."""
        self._runner.run(self._origin.close())
        self._runner.close()


class ListSession:
    """Requests for the list of one job, with the job's retries. Close it at the end, as a with block does."""

    def __init__(
        self, job: Job, auth: Auth | None, network: Network, spool_dir: Path, *, accept: str = "*/*",
        path: Path | None = None, max_bytes: int, resolver: Resolver | None = None,
    ) -> None:  # fmt: skip
        """Bodies are written to ``path``, each in place of the last one, or else to temporary files."""
        allowed = AddressFilter(job.source.allow_private_addresses)
        options = job.origin_options({}, auth, network)
        make = partial(Origin, options, allowed, spool_dir, resolver=resolver)
        page = partial(tempfile.SpooledTemporaryFile, _IN_MEMORY_BYTES, dir=spool_dir)
        adapter = OriginAdapter(make, cast("Any", page) if path is None else partial(_open, path), max_bytes)
        # five tries as for everything that is not an object, with the job's waits
        self._tries = Tries(base_s=job.retries.backoff_s, max_s=job.retries.max_backoff_s)
        self._session = requests.Session()
        self._session.trust_env = False  # no ~/.netrc; the Origin has the proxies
        self._session.headers = CaseInsensitiveDict({"User-Agent": options.user_agent, "Accept": accept})
        self._session.adapters.clear()
        self._session.mount("http", adapter)  # http:// and https://

    def get(self, url: str) -> requests.Response:
        """Returns the response for a URL. Raises ObjectError, or Fatal if the spool disk fails."""
        return self._tries(lambda: self._get(url))

    def _get(self, url: str) -> requests.Response:
        try:
            request = self._session.prepare_request(requests.Request("GET", url))
        except (requests.RequestException, UnicodeError):
            raise ObjectError(ErrorClass.BAD_URL, "this URL cannot be fetched: it is malformed") from None
        request.url = url  # requests would change its percent-encoding
        return self._session.send(request, stream=True, allow_redirects=False)

    def __enter__(self) -> ListSession:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()


def _rewind(file: BinaryIO) -> None:
    try:
        file.seek(0)  # writes what is buffered
    except OSError as exc:
        raise disk_error(exc, "the file of the downloaded list") from exc


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("w+b")
    except OSError as exc:
        raise disk_error(exc, f"the downloaded file {path}") from exc


def download(job: Job, auth: Auth | None, network: Network, url: str, path: Path, max_bytes: int) -> None:
    """Writes the list at a URL to a file. Raises ObjectError, or Fatal for a failing disk or a proxy that refuses.

    After an error, the file is removed.
    """
    try:
        with ListSession(job, auth, network, path.parent, path=path, max_bytes=max_bytes) as session:
            session.get(url).close()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
