"""Three ways to copy from bucket to bucket on one server: `python -m benchmarks.copies`. See docs/decisions/0012."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from benchmarks.images import images
from benchmarks.place import BENCH, work_folders
from benchmarks.settings import IMAGE_BYTES
from benchmarks.turns import ROUNDS, Took, at_once, show
from demo.s3 import S3Server
from ferry.storage.access import S3Access
from ferry.storage.factory import open_store
from ferry.storage.store import Store

OBJECTS = 6_000
MOST = 1 << 40

Way = Callable[[Store, Store, str, str, int], Awaitable[object]]


async def read_and_write(source: Store, target: Store, key: str, etag: str, size: int) -> None:
    body, _, attributes = await source.get(key, max_bytes=MOST)
    await target.confirm(key, body, await target.put(key, body, attributes))


async def read_and_have_copied(source: Store, target: Store, key: str, etag: str, size: int) -> None:
    await source.get(key, max_bytes=MOST)
    await target.copy_from(source, key, key, size=size, etag=etag)


async def have_copied(source: Store, target: Store, key: str, etag: str, size: int) -> None:
    await target.copy_from(source, key, key, size=size, etag=etag)


WAYS: dict[str, Way] = {
    "GET, hash, PUT": read_and_write,
    "GET, hash, the server copies": read_and_have_copied,
    "the server copies, nothing read": have_copied,
}


async def measure(s3: S3Server, spool: Path) -> None:
    access = S3Access(s3.endpoint_url, s3.region, keys=(s3.access_key, s3.secret_key, None))

    def opened(bucket: str) -> Store:
        s3.make_bucket(bucket)
        return open_store(f"s3://{bucket}/", access, spool)

    pool, entries = images(BENCH, OBJECTS)
    source = opened("source")
    client = s3.client()
    for path, _, _ in entries:
        client.put_object(Bucket="source", Key=path, Body=(pool / path).read_bytes())
    took: dict[str, list[Took]] = {name: [] for name in WAYS}
    for number in range(ROUNDS):
        for place, (name, way) in enumerate(WAYS.items()):
            target = opened(f"to-{number}-{place}")
            took[name].append(await at_once(way(source, target, path, md5, size) for path, md5, size in entries))
            await target.close()
    await source.close()
    show(took, OBJECTS)


def main() -> None:
    room = OBJECTS * IMAGE_BYTES * (1 + ROUNDS * len(WAYS))
    with work_folders(keep=False, room=room) as (_, folder), S3Server(folder / "s3") as s3:
        uvloop.run(measure(s3, folder / "spool"))


if __name__ == "__main__":
    main()
