"""Servers that speak S3, each for what it does otherwise than Amazon. Ceph has a module of its own."""

from __future__ import annotations

from collections.abc import Sequence

from demo.s3 import S3Server
from tests.servers.stores.known import Known
from tests.servers.stores.server import INSTALLED, S3StoreServer


class SeaweedFS(S3StoreServer):
    """The server of the demonstration and of most tests: everything but the odd keys and the order of listings."""

    name = "SeaweedFS"
    known = Known(
        keys={
            "double slash": "folded", "dot segment": "refused", "two-dot segment": "refused", "backslash": "folded",
            "slash at the start": "folded", "slash at the end": "folded", "900 bytes": "refused",
        },
        byte_order=False,
        compares_digest=False,
        makes_buckets=True,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.s3 = S3Server()
        self.endpoint_url = self.s3.endpoint_url

    @classmethod
    def missing(cls) -> str | None:
        return None  # a wheel of the environment of the tests

    def start(self) -> None:
        self.s3.start()

    def stop(self) -> None:
        self.s3.stop(within_s=0)


class Moto(S3StoreServer):
    """Keeps every attribute and every key. It checks neither signatures nor digests: for fidelity."""

    name = "moto"
    known = Known(keys={"newline": "refused"}, compares_digest=False, checks_keys=False, copies_if_equal=False)

    @classmethod
    def program(cls) -> Sequence[str]:
        return (str(INSTALLED / "bin" / "moto_server"),)

    def options(self) -> Sequence[str]:
        return ("-H", "127.0.0.1", "-p", str(self.port))


class MinioGateway(S3StoreServer):
    """MinIO's front end over JuiceFS: for the stores that are made of it, and that ignore If-None-Match."""

    name = "MinIO gateway"
    known = Known(
        keys={
            "double slash": "folded", "dot segment": "refused", "two-dot segment": "refused",
            "slash at the start": "folded", "slash at the end": "refused",
        },
        lost=frozenset({"Content-Language", "Content-Encoding"}),
        creates_once=False,
        creates_parts_once=False,
    )  # fmt: skip

    @classmethod
    def program(cls) -> Sequence[str]:
        return (str(INSTALLED / "bin" / "juicefs"),)

    def prepare(self) -> None:
        (self.folder / "blocks").mkdir()
        self.call(
            [*self.program(), "format", self._meta, "jfs", "--storage", "file", "--bucket", f"{self.folder}/blocks/"]
        )

    def options(self) -> Sequence[str]:
        kept = ("--multi-buckets", "--keep-etag", "--object-tag", "--object-meta")
        quiet = ("--no-banner", "--no-bgjob", "--no-usage-report")
        return ("gateway", self._meta, f"127.0.0.1:{self.port}", *kept, *quiet)

    def environment(self) -> dict[str, str]:
        return {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}

    @property
    def _meta(self) -> str:
        return f"sqlite3://{self.folder}/meta.db"


class Rclone(S3StoreServer):
    """Stands for stores that ignore conditions: no state may be there."""

    name = "rclone"
    known = Known(
        keys={
            "double slash": "refused", "dot segment": "refused", "two-dot segment": "refused",
            "slash at the start": "refused", "slash at the end": "folded", "900 bytes": "refused",
        },
        compares_digest=False,
        creates_once=False,
        creates_parts_once=False,
        copies_if_equal=False,
    )  # fmt: skip

    @classmethod
    def program(cls) -> Sequence[str]:
        return (str(INSTALLED / "bin" / "rclone"),)

    def prepare(self) -> None:
        (self.folder / "data").mkdir()

    def options(self) -> Sequence[str]:
        keys = f"{self.access_key},{self.secret_key}"
        return ("serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", keys, str(self.folder / "data"))
