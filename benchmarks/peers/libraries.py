"""A provider's own library at a server, in `.venv-stores`: libraries.py LIBRARY URL THREADS BYTES

Prints the library's version. Then each line of the standard input, `put OBJECTS` or `list PAGES`, is done and answered
by the seconds that passed and those of processor time, in a line.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import requests
from requests.adapters import HTTPAdapter

Put = Callable[[str, bytes], object]
List = Callable[[], Iterable[object]]


def boto3(url: str, threads: int) -> tuple[Put, List]:
    import boto3
    from botocore.config import Config

    s3 = boto3.client(
        "s3", "us-east-1", endpoint_url=url, aws_access_key_id="k", aws_secret_access_key="s",
        config=Config(max_pool_connections=threads, s3={"addressing_style": "path"}),
    )  # fmt: skip
    return (
        lambda key, data: s3.put_object(Bucket="bucket", Key=key, Body=data, ContentType="image/jpeg"),
        lambda: s3.list_objects_v2(Bucket="bucket", Prefix="images/")["Contents"],
    )


def google_cloud_storage(url: str, threads: int) -> tuple[Put, List]:
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud import storage
    from google.oauth2.credentials import Credentials

    token = Credentials("t" * 200)
    session = AuthorizedSession(token)
    session.mount("http://", HTTPAdapter(pool_maxsize=threads))
    client = storage.Client("project", token, session, client_options={"api_endpoint": url})
    bucket = client.bucket("b")
    return (
        lambda key, data: bucket.blob(key).upload_from_string(data, "image/jpeg"),
        lambda: client.list_blobs(bucket, prefix="images/"),
    )


def azure_storage_blob(url: str, threads: int) -> tuple[Put, List]:
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import BlobServiceClient, ContentSettings

    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_maxsize=threads))
    key = {"account_name": "account", "account_key": "a2V5" * 16}
    transport = RequestsTransport(session=session)
    container = BlobServiceClient(f"{url}/account", key, transport=transport).get_container_client("box")
    settings = ContentSettings("image/jpeg")
    return (
        lambda key, data: container.upload_blob(key, data, overwrite=True, content_settings=settings),
        lambda: container.list_blobs(name_starts_with="images/"),
    )


LIBRARIES = {each.__name__.replace("_", "-"): each for each in (boto3, google_cloud_storage, azure_storage_blob)}


def main() -> None:
    library, url, threads, size = sys.argv[1:]
    put, listing = LIBRARIES[library](url, int(threads))
    data = bytes(range(256)) * (int(size) // 256)
    print(importlib.metadata.version(library), flush=True)
    with ThreadPoolExecutor(int(threads)) as pool:
        for line in sys.stdin:
            what, count = line.split()
            began, used = time.monotonic(), time.process_time()
            if what == "put":
                for _ in pool.map(lambda number: put(f"images/{number}.jpg", data), range(int(count))):
                    pass
            else:
                for _ in range(int(count)):
                    assert sum(1 for _ in listing()) >= 1000
            print(time.monotonic() - began, time.process_time() - used, flush=True)


if __name__ == "__main__":
    main()
