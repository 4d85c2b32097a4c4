"""A library of generated images at a fault-injecting origin, with the expected outcome of each row.

Among the healthy rows are 63 others: 47 end as failures, one is a duplicate, and 15 are copied in the end. The
outcomes are listed here by name, so that tests do not compare Ferry's results with Ferry's own rules.
"""

from __future__ import annotations

import csv
import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from demo.images import EXTENSIONS, FORMATS, MIME, make_image
from demo.origin import Fault, Origin, Trouble

# number of rows, fault, error class (a value of ferry.core.records.ErrorClass)
_FAILING: tuple[tuple[int, Fault, str], ...] = (
    (8, Fault(Trouble.NOT_FOUND), "not_found"),
    (3, Fault(Trouble.GONE), "gone"),
    (3, Fault(Trouble.FORBIDDEN), "forbidden"),
    (5, Fault(Trouble.SERVER_ERROR), "server_error"),
    (6, Fault(Trouble.HTML_200), "not_image"),
    (3, Fault(Trouble.JSON_200), "not_image"),
    (3, Fault(Trouble.TRUNCATED_LENGTH), "truncated"),
    (2, Fault(Trouble.TRUNCATED_CHUNKED), "truncated"),
    (2, Fault(Trouble.TRUNCATED_CLOSE), "truncated"),
    (3, Fault(Trouble.EMPTY), "not_image"),
    (2, Fault(Trouble.REDIRECT_LOOP), "redirect_loop"),
    (2, Fault(Trouble.RESET), "connection"),
)
_RECOVERING: tuple[tuple[int, Fault], ...] = (
    (3, Fault(Trouble.FLAKY)),
    (2, Fault(Trouble.RATE_LIMITED, seconds=1)),
    (1, Fault(Trouble.RATE_LIMITED, seconds=1, http_date=True)),
    (1, Fault(Trouble.SLOW, seconds=1)),
    (1, Fault(Trouble.SLOW, seconds=2)),
    (2, Fault(Trouble.REDIRECT)),
    (2, Fault(Trouble.GZIP)),
    (1, Fault(Trouble.RESET, times=1)),
    (1, Fault(Trouble.WRONG_TYPE)),
)
_COLLISIONS = 2  # pairs of rows with the same key
_RETRYABLE = {"forbidden", "server_error", "truncated", "connection"}  # classes above that a plain rerun retries

# parts of real file names; a client that encodes or decodes twice gets each one wrong
_ODD_NAMES = ("%20front%20view", "-gr%C3%BCn", "+plus", "%23tag", "-50%25off", "-(1)", "&b=c")


@dataclass(slots=True)
class Library:
    """The rows of a manifest, and the outcomes that a first run must have."""

    origin: Origin
    rows: list[dict[str, str]] = field(default_factory=list)
    """Rows with the columns sku and url, in the manifest's order. One url is empty, one row appears twice."""
    expected: dict[str, bytes] = field(default_factory=dict)
    """Maps a key (the URL's path, no leading slash, percent-decoded) to the bytes that the destination must have."""
    expected_failures: dict[str, str] = field(default_factory=dict)
    """Maps a row's URL to its error class; "" is the row without a URL."""
    retryable: list[str] = field(default_factory=list)
    """URLs of the failures that a plain rerun retries."""
    duplicates: int = 0
    """The number of rows that are skipped as duplicates."""
    _broken: list[tuple[str, bytes]] = field(default_factory=list)  # path and intact bytes, in the order of repair

    def write_csv(self, path: Path) -> None:
        """Write the manifest: a header line and one line per row."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=["sku", "url"])
            writer.writeheader()
            writer.writerows(self.rows)

    @property
    def mendable(self) -> int:
        """The number of broken objects that ``mend`` has not repaired yet."""
        return len(self._broken)

    def mend(self, n: int) -> dict[str, bytes]:
        """Repair ``n`` broken objects at the origin, and return their keys with the bytes that they now have.

        Repairs one object of each fault in turn, 404s, pages and 500s first; a second call continues from there. The
        404s and the pages are permanent failures: a rerun takes them only with ``--retry-failed``. ``expected`` and
        ``expected_failures`` do not change. Raises ValueError if fewer than ``n`` are broken.
        """
        if n > len(self._broken):
            raise ValueError(f"{n} objects to repair, but only {len(self._broken)} are broken")
        mended, self._broken = self._broken[:n], self._broken[n:]
        for path, _ in mended:
            self.origin.mend(path)
        return {key_of(path): body for path, body in mended}


def key_of(path: str) -> str:
    """Returns the key for a path with its query: no query, no leading slash, percent-decoded once."""
    return unquote(path.partition("?")[0].removeprefix("/"), errors="strict")


def build_library(origin: Origin, count: int = 2000, seed: int = 1) -> Library:
    """Fill ``origin`` with ``count`` healthy images and 63 other rows. The same seed gives the same library."""
    rng = random.Random(seed)
    library = Library(origin)
    numbers = itertools.count(1)

    def new(folder: str, *, odd: bool = False) -> tuple[str, str, bytes, str]:
        """Returns SKU, path, bytes and media type of the next image; formats take turns."""
        number = next(numbers)
        fmt = FORMATS[number % len(FORMATS)]
        name = f"p{number:05d}" + (_ODD_NAMES[number // 20 % len(_ODD_NAMES)] if odd and number % 20 == 0 else "")
        path = f"/{folder}/{number % 40:02d}/{name}.{EXTENSIONS[fmt]}"
        if number % 10 == 3:  # a signed URL, which must arrive byte for byte
            path += f"?Expires=1790000000&name=a%2Fb+c%20d&Signature={rng.randbytes(12).hex()}~%3D"
        return f"SKU-{number:05d}", path, make_image(fmt, seed * 1_000_003 + number), MIME[fmt]

    def row(sku: str, path: str) -> str:
        url = origin.url(path) if path else ""
        library.rows.append({"sku": sku, "url": url})
        return url

    for _ in range(count):
        sku, path, body, mime = new("images", odd=True)
        origin.add(path, body, mime)
        row(sku, path)
        library.expected[key_of(path)] = body

    broken: list[list[tuple[str, bytes]]] = []
    for many, fault, error_class in _FAILING:
        broken.append([])
        for _ in range(many):
            sku, path, body, mime = new(f"images/{fault.kind}")
            origin.add(path, body, mime, fault)
            url = row(sku, path)
            library.expected_failures[url] = error_class
            if error_class in _RETRYABLE:
                library.retryable.append(url)
            broken[-1].append((path, body))
    for many, fault in _RECOVERING:
        for _ in range(many):
            sku, path, body, mime = new(f"images/{fault.kind}")
            origin.add(path, body, mime, fault)
            row(sku, path)
            library.expected[key_of(path)] = body

    for pair in range(_COLLISIONS):
        for version in ("1", "2"):
            sku, _, body, mime = new("images")
            path = f"/images/same/cover{pair}.jpg?v={version}"
            origin.add(path, body, mime)
            library.expected_failures[row(sku, path)] = "key_collision"
    library.expected_failures[row(f"SKU-{next(numbers):05d}", "")] = "bad_url"
    sku, path, body, mime = new("images/twice")
    origin.add(path, body, mime)
    row(sku, path)
    row(sku, path)
    library.expected[key_of(path)] = body
    library.duplicates = 1

    rng.shuffle(library.rows)
    library._broken = _in_turn(broken)
    return library


def _in_turn(groups: list[list[tuple[str, bytes]]]) -> list[tuple[str, bytes]]:
    """Returns one item of each group in turn; the groups of _MENDED_FIRST come first in each round."""
    first = [i for i, (_, fault, _) in enumerate(_FAILING) if fault.kind in _MENDED_FIRST]
    order = [*first, *(i for i in range(len(groups)) if i not in first)]
    rounds = itertools.zip_longest(*(groups[i] for i in order))
    return [item for items in rounds for item in items if item is not None]


_MENDED_FIRST = (Trouble.NOT_FOUND, Trouble.HTML_200, Trouble.SERVER_ERROR)
