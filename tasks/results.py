"""Where Prefect keeps the chunks' results: under the job's state, so that a rerun finds them anywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.engine.access import Access
from tasks.engine.state import DirectoryState, State


def result_storage(state: State, access: Access) -> Any:
    """A local path, or a saved S3Bucket block for state in a bucket (an unsaved block is refused)."""
    if isinstance(state, DirectoryState):
        path = state.root / "results"
        path.mkdir(parents=True, exist_ok=True)
        return Path(path)
    from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket
    from pydantic import SecretStr

    parts = urlsplit(state.uri)
    keys = access.keys or (None, None, None)
    credentials = AwsCredentials(
        aws_access_key_id=keys[0],
        aws_secret_access_key=SecretStr(keys[1]) if keys[1] else None,
        aws_session_token=keys[2],
        profile_name=access.profile,
        region_name=access.region,
        aws_client_parameters=AwsClientParameters(endpoint_url=access.endpoint_url),
    )
    bucket = S3Bucket(
        bucket_name=parts.netloc, bucket_folder=f"{parts.path.strip('/')}/results", credentials=credentials
    )
    bucket.save("ferry-" + hashlib.sha256(state.uri.encode()).hexdigest()[:16], overwrite=True)
    return bucket
