"""Eleven objects with everything that a provider can hold beside the bytes, copied from each kind of store to each."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple

from demo.images import make_image
from ferry.core import HOLDS, REDIRECT, TAGS, TIER, AttributeRules, Row, attributes_digest, split, word_of
from ferry.storage.factory import open_store
from ferry.storage.store import Store
from ferry.transfer.attributes import Carrier
from ferry.transfer.source import Fetch
from tests.servers.stores import StoreServer
from tests.support.helpers import make_body

IMAGE = make_image("jpeg", 11)
TIERS = {"s3": "STANDARD_IA", "gs": "NEARLINE", "az": "Cool", "file": ""}  # by the names of each provider
_EACH: dict[str, dict[str, str]] = {
    "type": {},
    "headers": {
        "Cache-Control": "public, max-age=31536000, immutable",
        "Content-Disposition": 'attachment; filename="a b.jpg"',
        "Content-Language": "de-CH",
    },
    "encoding": {"Content-Encoding": "gzip"},
    "metadata": {"sku": "A 1", "ean-code": "4006381333931", "title": "grün"},
    "expires": {"Expires": "Wed, 01 Dec 2027 16:00:00 GMT"},
    "tags": {TAGS: "a+b=c%2Bd&team=shop"},
    "class": {TIER: ""},
    "redirect": {REDIRECT: "/elsewhere.jpg"},
    "names": {"expires": "never", "content-type": "image/png"},  # metadata with the names of headers
    "long": {f"n{n}": "x" * 300 for n in range(5)},
}
OBJECTS = {**_EACH, "everything": {name: value for given in _EACH.values() for name, value in given.items()}}


class Copy(NamedTuple):
    """What became of one object's attributes."""

    source: dict[str, str]  # as the source's store has them
    lost: set[str]  # by the names of reports
    copy: dict[str, str]  # as the destination's has them


def of_source(name: str, scheme: str) -> dict[str, str]:
    """Returns the attributes of an object, as far as a store of this kind can hold them."""
    given = {**OBJECTS[name], "Content-Type": "image/jpeg"}
    if TIER in given:
        given[TIER] = TIERS[scheme]
    if scheme != "s3":
        given = {key: value for key, value in given.items() if not key.startswith("n") or len(value) < 300}
    return split(given, HOLDS[scheme])[0]


def expected_loss(attributes: Mapping[str, str], scheme: str) -> set[str]:
    """Returns the names that a store of this kind cannot hold, by hand and not by Ferry's table."""
    lost = {
        "s3": {TIER} - ({TIER} if attributes.get(TIER) == "STANDARD_IA" else set()),  # moto knows Amazon's
        "gs": {"Expires", TAGS, REDIRECT, *([] if attributes.get(TIER) == "NEARLINE" else [TIER])},
        "az": {"Expires", REDIRECT, "ean-code", "content-type", *([] if attributes.get(TIER) == "Cool" else [TIER])},
        "file": set(attributes) - {"Content-Type"},
    }[scheme]
    return lost & set(shown(attributes))


@contextlib.asynccontextmanager
async def opened(server: StoreServer, bucket: str, folder: Path) -> AsyncIterator[Store]:
    store = open_store(server.uri(bucket), server.access(), folder / "spool", create=True)
    try:
        yield store
    finally:
        await store.close()


async def put_one(name: str, store: Store, folder: Path) -> None:
    """Puts an object with all that a store of this kind can hold."""
    given = of_source(name, store.kind)
    data = gzip.compress(IMAGE, mtime=0) if "Content-Encoding" in given else IMAGE
    await store.put(f"{name}.jpg", make_body(data, folder), given)


async def copy_one(name: str, source: Store, destination: Store) -> Copy:
    """Copies an object as a transfer does."""
    body, info, attributes = await source.get(f"{name}.jpg", max_bytes=1 << 20, tags=True)
    there = dict(attributes)
    kind = attributes.pop("Content-Type", None)
    carrier = Carrier(AttributeRules(), destination.kind, destination, fail=False)
    listed = await source.head(f"{name}.jpg", side="source")
    row = Row("0" * 64, source.uri + name, name, storage_class=listed.tier if listed else None)
    if row.storage_class:
        there.setdefault(TIER, row.storage_class)
    carried = carrier.of(row, Fetch(body, kind, info.etag, None, 1, attributes), kind or "image/jpeg")
    sent = await destination.put(f"{name}.jpg", body, carried.attributes)
    _, _, copy = await destination.get(f"{name}.jpg", max_bytes=1 << 20, tags=True)
    written = await destination.head(f"{name}.jpg")
    if written is not None and written.tier:
        copy.setdefault(TIER, written.tier)
    return Copy(there, {*carried.lost, *map(word_of, sent.lost)}, copy)


def copy_all(source: StoreServer, destination: StoreServer, folder: Path) -> dict[str, Copy]:
    """Returns what became of each object between two servers."""

    async def work() -> dict[str, Copy]:
        names = [f"test-{secrets.token_hex(6)}" for _ in range(2)]
        for server, name in zip((source, destination), names, strict=True):
            server.make_bucket(name)
        async with opened(source, names[0], folder) as old, opened(destination, names[1], folder) as new:
            for name in OBJECTS:
                await put_one(name, old, folder)
            return {name: await copy_one(name, old, new) for name in OBJECTS}

    return asyncio.run(work())


def shown(attributes: Mapping[str, str]) -> dict[str, str]:
    """Returns attributes without a standard tier, which a store gives by itself."""
    return {
        name: value for name, value in attributes.items() if (name, value) not in ((TIER, "STANDARD"), (TIER, "Hot"))
    }


def seen(attributes: Mapping[str, str]) -> tuple[str, str | None]:
    """Returns what a verification compares, and the tier."""
    return attributes_digest(attributes), shown(attributes).get(TIER)


def same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Returns whether two stores have the same, as a verification compares it, and the same tier."""
    return seen(one) == seen(other)
