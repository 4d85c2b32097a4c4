"""A first look at a manifest, without a job: what `ferry init` writes a job from."""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ferry.core import UserError
from ferry.job import Columns
from ferry.manifest.cells import split_cells
from ferry.manifest.columns import SourceProposed
from ferry.manifest.open import open_manifest
from ferry.manifest.plausible import SAMPLE_ROWS, are_addresses, first_rows, sample
from ferry.manifest.sources import repaired

SEPARATORS = (", ", ",", " | ", "|", "; ", ";", "\n", " ")
URL_OF_IDS = "https://img.old.example/{id}.jpg"  # to be edited


@dataclass(frozen=True, slots=True)
class Look:
    """What the first rows of a manifest show."""

    columns: dict[str, str]  # the settings of `columns` that the manifest needs
    recognised: dict[str, str]  # role -> column
    samples: dict[str, str]  # role -> a value
    left: list[str]  # sentences on columns that are not read
    hosts: Counter[str]  # host -> addresses
    rows: int  # that were looked at
    has_only_ids: bool  # addresses must be made from them
    more_sources: list[str]  # other columns with addresses, of the same objects or of others

    @property
    def private_hosts(self) -> list[str]:
        """The hosts that only `source.allow_private_addresses` opens, as far as their names show it."""
        return sorted(host for host in self.hosts if _is_private(host))


def look_at(path: Path) -> Look:
    """Looks at the first rows of a local file. Raises UserError if it is no manifest."""
    columns, only_ids = Columns(), False
    try:
        manifest = open_manifest(path, str(path), columns)
    except SourceProposed as found:
        columns = Columns(source=found.column)
        manifest = open_manifest(path, str(path), columns)
    except UserError as error:
        try:
            manifest, only_ids = open_manifest(path, str(path), columns, url_template=URL_OF_IDS), True
        except UserError:
            raise error from None
    first = first_rows(manifest.batches())
    needed = {"source": name} if (name := columns.of("source")) else {}
    separator = separator_of(sample(first, "source"))
    if separator is not None:
        needed["split"] = separator
        first = list(split_cells(first, separator))
    addresses = [repaired(source, bare=manifest.bare_hosts) for source in sample(first, "source")]
    hosts = Counter(host for address in addresses if (host := _host(address)))
    rows = min(SAMPLE_ROWS, sum(map(len, first)))
    more = [] if only_ids or separator else _more_sources(path, columns, manifest.others)
    return Look(needed, manifest.recognised, manifest.samples, manifest.left, hosts, rows, only_ids, more)


def _more_sources(path: Path, columns: Columns, names: Sequence[str]) -> list[str]:
    """Returns which of these columns have addresses; none if one of them cannot be read as text."""
    with contextlib.suppress(UserError):
        first = first_rows(open_manifest(path, str(path), columns, needed=names).batches())
        return [name for name in names if are_addresses(sample(first, name))]
    return []


def separator_of(cells: Sequence[str]) -> str | None:
    """Returns what separates several addresses in cells, None if each has one.

    | cells | |
    |---|---|
    | `https://a/1.jpg`, `https://a/2.jpg` | None |
    | `https://a/1.jpg, https://a/2.jpg` | `", "` |
    | `https://a/1.jpg;https://a/2,3.jpg` | `";"` |
    """
    several = [cell for cell in cells if cell.count("://") > 1]
    for separator in SEPARATORS:
        parts = [part.strip() for cell in several for part in cell.split(separator) if part.strip()]
        if several and all(part.count("://") == 1 and _host(part) and not set(part) & set(" \n") for part in parts):
            return separator
    return None


def _host(address: str) -> str | None:
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return parts.hostname if parts.scheme in ("http", "https") else None


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".internal", ".localhost"))
