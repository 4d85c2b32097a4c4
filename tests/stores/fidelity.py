"""`python -m tests.stores.fidelity`: which attributes Ferry and `rclone copy -M` keep between stores, as a table.

Both copy the same eleven objects between the same servers. An attribute counts if the destination has it as the source
had it; "could" is what a store of that kind can hold. What rclone adds of its own (mtime, btime) is not counted. rclone
fails an object as a whole if the destination refuses one of its names or its class.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ferry.core import TIER, ObjectError, word_of
from ferry.storage.store import Store
from tests.servers.stores import Azurite, FakeGcsServer, Moto, StoreServer
from tests.servers.stores.server import INSTALLED
from tests.stores.directions import OBJECTS, copy_one, expected_loss, opened, put_one, seen, shown

DIRECTIONS = ((Moto, Moto), (Moto, FakeGcsServer), (Moto, Azurite), (FakeGcsServer, Moto), (Azurite, Moto))


def rclone_remote(name: str, server: StoreServer) -> dict[str, str]:
    """Returns a remote of rclone as variables of its environment."""
    kinds = {
        "s3": {"TYPE": "s3", "PROVIDER": "Other", "ACCESS_KEY_ID": "AKIAFERRYTEST", "REGION": "us-east-1",
               "SECRET_ACCESS_KEY": "ferry-test-secret-key", "ENDPOINT": server.endpoint_url},
        "gs": {"TYPE": "google cloud storage", "ANONYMOUS": "true", "BUCKET_POLICY_ONLY": "true",
               "ENDPOINT": f"{server.endpoint_url}/storage/v1/"},
        "az": {"TYPE": "azureblob", "ACCOUNT": Azurite.account, "KEY": Azurite.account_key,
               "ENDPOINT": server.endpoint_url},
    }  # fmt: skip
    return {f"RCLONE_CONFIG_{name}_{key}": value for key, value in kinds[server.scheme].items()}


def rclone(source: StoreServer, old: str, destination: StoreServer, new: str) -> None:
    """Copies all objects with their metadata."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **rclone_remote("OLD", source)}
    environment |= rclone_remote("NEW", destination)
    done = subprocess.run(
        [str(INSTALLED / "bin" / "rclone"), "copy", "-M", "--ignore-checksum", f"OLD:{old}/p", f"NEW:{new}/p"],
        env=environment, timeout=120, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1][:300], file=sys.stderr)


def kept(source: Mapping[str, str], copy: Mapping[str, str], could: Mapping[str, str]) -> Counter[str]:
    """Counts the attributes that a copy has as its source, those that it could have, by the names of reports."""
    found: Counter[str] = Counter()
    for name in could:
        word = "metadata" if word_of(name).startswith("metadata.") else word_of(name)
        found[word] += seen({name: copy.get(name, "")}) == seen({name: source[name]})
        found[f"{word} could"] += 1
    return found


async def compare(source: StoreServer, destination: StoreServer, folder: Path) -> dict[str, Counter[str]]:
    """Returns what each program kept, by its name."""
    names = {"old": source, "ferry": destination, "rclone": destination}
    buckets = {name: f"test-{secrets.token_hex(6)}" for name in names}
    for name, server in names.items():
        server.make_bucket(buckets[name])
    results: dict[str, Counter[str]] = {"ferry": Counter(), "rclone": Counter()}
    async with contextlib.AsyncExitStack() as stack:
        stores = {name: await stack.enter_async_context(opened(names[name], buckets[name], folder)) for name in names}
        for name in OBJECTS:
            await put_one(name, stores["old"], folder)
            await copy_one(name, stores["old"], stores["ferry"])
        rclone(source, buckets["old"], destination, buckets["rclone"])
        for name in OBJECTS:
            there = await attributes_in(stores["old"], name) or {}
            lost = expected_loss(there, destination.scheme)
            could = {name: value for name, value in shown(there).items() if name not in lost}
            for program, result in results.items():
                copy = await attributes_in(stores[program], name)
                result.update(kept(there, copy or {}, could))
                result.update({"(objects)": copy is not None, "(objects) could": 1})
    return results


async def attributes_in(store: Store, name: str) -> dict[str, str] | None:
    """Returns the attributes of an object, or None if it is not there."""
    try:
        _, info, attributes = await store.get(f"{name}.jpg", max_bytes=1 << 20, tags=True)
    except ObjectError:
        return None
    listed = await store.head(f"{name}.jpg", side="source")
    tier = info.tier or (listed.tier if listed else None)
    return attributes | ({TIER: tier} if tier and TIER not in attributes else {})


def main() -> int:
    print("| from | to | attribute | could | Ferry | rclone -M |\n|---|---|---|---:|---:|---:|")
    for source, destination in DIRECTIONS:
        with source() as old, contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            new = old if source is destination else stack.enter_context(destination())
            found = asyncio.run(compare(old, new, Path(folder)))
            for word in sorted(name for name in found["ferry"] if not name.endswith(" could")):
                ours, theirs = found["ferry"], found["rclone"]
                numbers = f"{ours[f'{word} could']} | {ours[word]} | {theirs[word]}"
                print(f"| {old.name} | {new.name} | {word} | {numbers} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
