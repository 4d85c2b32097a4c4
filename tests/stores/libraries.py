"""A provider's own library as a process in `.venv-stores`: libraries.py LIBRARY URL BUCKET USER SECRET

It creates the bucket, then answers each line of the standard input, a JSON object, with one: `{"put": FOLDER}` uploads
the files that FOLDER/index.json names by their keys; `{"read": PREFIX}` returns of each object below a prefix its
SHA-256, its MD5 and the MD5 that the store has of it. Nothing here is Ferry's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

AT_ONCE = 8


class Library(Protocol):
    def __init__(self, url: str, bucket: str, user: str, secret: str) -> None: ...

    def put(self, key: str, path: str, content_type: str) -> None: ...

    def keys(self, prefix: str) -> Iterator[tuple[str, str | None]]:
        """Yields each key with the MD5 that the store has of the object, in hex digits."""
        ...

    def get(self, key: str) -> bytes: ...


class Boto3:
    def __init__(self, url: str, bucket: str, user: str, secret: str) -> None:
        import boto3

        self.bucket = bucket
        self.s3: Any = boto3.client(
            "s3", "us-east-1", endpoint_url=url, aws_access_key_id=user, aws_secret_access_key=secret
        )
        self.s3.create_bucket(Bucket=bucket)

    def put(self, key: str, path: str, content_type: str) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=Path(path).read_bytes(), ContentType=content_type)

    def keys(self, prefix: str) -> Iterator[tuple[str, str | None]]:
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                yield item["Key"], item["ETag"].strip('"')

    def get(self, key: str) -> bytes:
        data: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data


class GoogleCloudStorage:
    def __init__(self, url: str, bucket: str, user: str, secret: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client("project", AnonymousCredentials(), client_options={"api_endpoint": url})
        self.bucket: Any = client.create_bucket(bucket)

    def put(self, key: str, path: str, content_type: str) -> None:
        self.bucket.blob(key).upload_from_filename(path, content_type)

    def keys(self, prefix: str) -> Iterator[tuple[str, str | None]]:
        for blob in self.bucket.list_blobs(prefix=prefix):
            yield blob.name, blob.md5_hash and base64.b64decode(blob.md5_hash).hex()

    def get(self, key: str) -> bytes:
        data: bytes = self.bucket.blob(key).download_as_bytes(raw_download=True)
        return data


class AzureStorageBlob:
    def __init__(self, url: str, bucket: str, user: str, secret: str) -> None:
        from azure.storage.blob import ContainerClient, ContentSettings

        self.settings: Any = ContentSettings
        self.container: Any = ContainerClient(url, bucket, {"account_name": user, "account_key": secret})
        self.container.create_container()

    def put(self, key: str, path: str, content_type: str) -> None:
        settings = self.settings(content_type)
        self.container.upload_blob(key, Path(path).read_bytes(), overwrite=True, content_settings=settings)

    def keys(self, prefix: str) -> Iterator[tuple[str, str | None]]:
        for blob in self.container.list_blobs(name_starts_with=prefix):
            md5 = blob.content_settings.content_md5
            yield blob.name, bytes(md5).hex() if md5 else None

    def get(self, key: str) -> bytes:
        data: bytes = self.container.download_blob(key).readall()
        return data


LIBRARIES: dict[str, type[Library]] = {
    "boto3": Boto3,
    "google-cloud-storage": GoogleCloudStorage,
    "azure-storage-blob": AzureStorageBlob,
}


def put(library: Library, folder: str) -> None:
    def one(item: tuple[str, dict[str, str]]) -> None:
        key, file = item
        library.put(key, f"{folder}/{file['file']}", file["content_type"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, json.loads(Path(folder, "index.json").read_text()).items()))


def read(library: Library, prefix: str) -> dict[str, list[str | None]]:
    def one(item: tuple[str, str | None]) -> tuple[str, list[str | None]]:
        key, stored = item
        data = library.get(key)
        return key, [hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest(), stored]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(pool.map(one, library.keys(prefix)))


def main() -> None:
    library = LIBRARIES[sys.argv[1]](*sys.argv[2:])
    for line in sys.stdin:
        asked = json.loads(line)
        if "put" in asked:
            put(library, asked["put"])
        print(json.dumps(read(library, asked["read"]) if "read" in asked else {}), flush=True)


if __name__ == "__main__":
    main()
