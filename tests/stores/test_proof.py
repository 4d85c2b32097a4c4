"""Proofs of objects in a store, which rclone compares where they are; the state is in a bucket, too."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.s3 import S3Server
from ferry.proof import copy_proof
from ferry.state.bucket import open_state
from ferry.storage.factory import open_store
from tests.servers.stores.server import INSTALLED
from tests.support.helpers import access, make_job, run, write_list
from tests.support.proofs import prove

pytestmark = pytest.mark.slow
KEYS = ("plain.jpg", "a b.jpg", "a%41.jpg", "ü/日本.jpg", "plus+.jpg", "#hash.jpg", "{b}.jpg")


def rclone(s3: S3Server, bucket: str, proof: Path, algorithm: str, *options: str) -> str:
    """Returns the complaints of `rclone checksum`, an empty text if it accepts the objects."""
    remote = {
        "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": s3.endpoint_url, "REGION": s3.region,
        "ACCESS_KEY_ID": s3.access_key, "SECRET_ACCESS_KEY": s3.secret_key,
    }  # fmt: skip
    environment = {f"RCLONE_CONFIG_REMOTE_{name}": value for name, value in remote.items()}
    command = [
        str(INSTALLED / "bin" / "rclone"), "checksum", algorithm, str(proof / f"manifest-{algorithm}.txt"),
        f':combine,upstreams="data=REMOTE:{bucket}/p":', *options,
    ]  # fmt: skip
    environment |= {"HOME": "/nonexistent", "RCLONE_CONFIG": "/dev/null"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else done.stderr


def test_rclone_finds_what_is_wrong(s3: S3Server, bucket: str, origin: Origin, tmp_path: Path) -> None:
    """It accepts the objects, by SHA-256 of what it downloads and by the store's MD5s, and finds each fault."""
    lines = [[origin.add(f"/{n}.jpg", make_image("jpeg", n)), key] for n, key in enumerate(KEYS)]
    write_list(tmp_path / "list.csv", lines, ("url", "key"))
    job = make_job(manifest=str(tmp_path / "list.csv"), destination=f"s3://{bucket}/p/", key="{key}")
    state = open_state(f"s3://{bucket}/state/", access(s3), tmp_path / "cache")
    run(job, state, access(s3))
    store = open_store(job.destination.uri, access(s3), tmp_path / "spool")
    made = prove(job, state, store)
    assert (made.reasons, made.document["listing"]["objects"]) == ([], len(KEYS))
    proof = tmp_path / "proof"
    proof.mkdir()
    copy_proof(state, made.name, proof)
    assert sorted(made.document["files"]) == sorted(path.name for path in proof.iterdir())
    assert (rclone(s3, bucket, proof, "sha256", "--download"), rclone(s3, bucket, proof, "md5")) == ("", "")
    client = s3.client()
    client.put_object(Bucket=bucket, Key="p/extra.jpg", Body=b"x")
    client.delete_object(Bucket=bucket, Key="p/a b.jpg")
    body = make_image("jpeg", 0)
    client.put_object(Bucket=bucket, Key="p/plain.jpg", Body=bytes([body[0] ^ 1]) + body[1:])
    for options in (("sha256", "--download"), ("md5",)):
        said = rclone(s3, bucket, proof, *options)
        for complaint in ("extra.jpg: sum not found", "a b.jpg: file not in", "plain.jpg: files differ"):
            assert f"ERROR : data/{complaint}" in said
