"""A directory as a store: nothing to start."""

from __future__ import annotations

from pathlib import Path

from tests.servers.stores.known import Known
from tests.servers.stores.server import StoreServer


class LocalDirectory(StoreServer):
    """A bucket is a folder. Files have no attributes."""

    name = "directory"
    scheme = "file"
    known = Known(
        keys={
            "double slash": "folded", "dot segment": "folded", "two-dot segment": "folded",
            "slash at the start": "folded", "slash at the end": "folded", "900 bytes": "refused",
        },
        lost=frozenset({
            "Content-Type", "Cache-Control", "Content-Disposition", "Content-Language", "Content-Encoding", "sku"
        }),
        byte_order=False,
        compares_digest=False,
        makes_buckets=True,
    )  # fmt: skip

    @classmethod
    def missing(cls) -> str | None:
        return None

    def start(self) -> None:
        pass

    def uri(self, bucket: str, prefix: str = "p") -> str:
        return f"file://{self.folder}/{bucket}/{prefix}/"

    def state_uri(self, bucket: str) -> str:
        return str(self.folder / bucket / "state")

    def make_bucket(self, name: str) -> None:
        (self.folder / name).mkdir()

    def put(self, bucket: str, key: str, data: bytes) -> None:
        path = self.folder / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def get(self, bucket: str, key: str) -> bytes | None:
        path = self.folder / bucket / key
        return path.read_bytes() if path.is_file() else None

    def keys(self, bucket: str) -> list[str]:
        root = self.folder / bucket
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    def attributes(self, bucket: str, key: str) -> dict[str, str]:
        return {}

    def open_uploads(self, bucket: str) -> list[str]:
        return [name for name in self.keys(bucket) if Path(name).name.startswith(".ferry")]
