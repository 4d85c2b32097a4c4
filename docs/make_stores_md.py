"""Generator of docs/reference/stores.md from the capability table: `python docs/make_stores_md.py`.

A test fails if the page is outdated. The table of what servers did stays as it is, unless a file is given:
`python -m tests.stores.table >table.md && python docs/make_stores_md.py table.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ferry.storage.capabilities import CAPABILITIES, Capabilities

HEAD = """\
# Stores

<!-- Generated from ferry/storage/capabilities.py by docs/make_stores_md.py. Edit those files. -->

Each of these can be a source, a destination and the place of a job's state. Web servers are sources alone.

"""
BETWEEN = """
`pip install 'image-ferry[gcs]'` and `pip install 'image-ferry[azure]'` add the provider's own library for tokens.
Account keys, SAS and public buckets need neither.

## What servers do

Ferry's contract suite runs against these servers: `make stores` installs them, `make test-stores` runs it. The columns
say what each server did, by `python -m tests.stores.table`. Emulators differ from the services that they stand for:
what an emulator refuses or ignores says nothing about Google or Azure.

A key is *kept* as it is, *folded* into another one, *refused*, or *unlisted*: with it the listing is an error.

"""
TAIL = """
## What was not tried

No test of Ferry reaches a cloud. Amazon S3, Google Cloud Storage and Azure Blob Storage themselves were never asked:
their documents and the servers above are what Ferry is built on. Tokens of workload identities, managed identities and
impersonation were tried against local servers that answer as the documents say.
"""
PAGE = Path(__file__).with_name("reference") / "stores.md"


def size(value: int) -> str:
    """Returns a size in its largest unit, "" for 0."""
    units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
    found = next(((value / unit, name) for unit, name in units if value >= unit), None)
    return f"{found[0]:,.1f} {found[1]}".replace(".0 ", " ") if found else ""


LINES: dict[str, Callable[[Capabilities], str]] = {
    "address": lambda c: f"`{c.address}`",
    "an upload is confirmed by": lambda c: c.confirmed_by,
    "attributes that objects keep": lambda c: ", ".join(c.attributes) or "none",
    "user metadata": lambda c: f"{size(c.metadata_bytes)}; names: {c.metadata_names}" if c.metadata_bytes else "none",
    "digest in a listing": lambda c: c.listed_digest,
    "listing in the order of bytes": lambda c: c.byte_order,
    "largest object": lambda c: size(c.max_bytes) or "the file system's",
    "parts of an upload": lambda c: (
        f"{c.max_parts:,} of {size(c.max_part_bytes)}" if c.max_parts else "any number" if c.parts else "none"
    ),
    "an upload that is left alone": lambda c: c.parts,
    "the server copies up to": lambda c: size(c.copies_up_to) or "nothing",
    "a second run is excluded by": lambda c: c.state,
    "credentials": lambda c: c.credentials,
    "needs the extra": lambda c: f"`{c.extra}`, for tokens" if c.extra else "",
}


def measured() -> str:
    """Returns the page's table of what servers did."""
    return PAGE.read_text().partition(BETWEEN)[2].partition(TAIL)[0]


def render(servers: str) -> str:
    """Returns the page with a table of what servers did."""
    kinds = list(CAPABILITIES.values())
    rows = [["", *(kind.name for kind in kinds)], ["---"] * (len(kinds) + 1)]
    rows += [[line, *(value(kind) for kind in kinds)] for line, value in LINES.items()]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return HEAD + table + BETWEEN + servers + TAIL


if __name__ == "__main__":
    PAGE.write_text(render(Path(sys.argv[1]).read_text() if sys.argv[1:] else measured()))
