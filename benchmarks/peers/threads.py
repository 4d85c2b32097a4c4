"""The script that people write: requests and boto3, in a pool of threads or in a plain loop.

threads.py URLS BUCKET PREFIX ENDPOINT THREADS     # URLS: lines of address,key
"""

from __future__ import annotations

import csv
import hashlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import requests
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

local = threading.local()


def copy(url: str, s3: S3Client, bucket: str, key: str) -> str | None:
    """Fetches one object and stores it; what went wrong, or None."""
    if not hasattr(local, "session"):
        local.session = requests.Session()
    try:
        answer = local.session.get(url, timeout=30)
        answer.raise_for_status()
        stored = s3.put_object(Bucket=bucket, Key=key, Body=answer.content, ContentType="image/jpeg")
    except Exception as error:
        return f"{url}: {error}"
    if stored["ETag"].strip('"') != hashlib.md5(answer.content).hexdigest():
        return f"{url}: stored with other bytes"
    return None


def main() -> int:
    urls, bucket, prefix, endpoint, threads = sys.argv[1:]
    with Path(urls).open(newline="") as file:
        rows = list(csv.reader(file))
    count = int(threads)
    # boto3's clients may be shared by threads; its default is ten connections
    s3 = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=max(10, count)))

    def one(row: list[str]) -> str | None:
        return copy(row[0], s3, bucket, f"{prefix}/{row[1]}")

    if count == 1:
        results = [one(row) for row in rows]
    else:
        with ThreadPoolExecutor(count) as pool:
            results = list(pool.map(one, rows))
    failed = [result for result in results if result]
    print("\n".join(failed[:20]))
    print(f"{len(rows) - len(failed)} copied, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
