"""Is the destination there, and may we write to it? Asked before anything is downloaded."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tasks.engine.access import Access, boto3_session
from tasks.engine.errors import UserError


def preflight(uri: str, access: Access, *, dry: bool = False) -> None:
    """Raises UserError when the destination is missing or does not let us write.

    A bucket is asked with HeadBucket, and for the right to write by starting a multipart upload and
    aborting it: that leaves no object behind, whatever happens. With ``dry`` nothing is begun or made.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file":
        _check_directory(Path(unquote(parts.path)), dry=dry)
    else:
        _check_bucket(parts.netloc, parts.path.strip("/"), access, dry=dry)


def _check_directory(directory: Path, *, dry: bool) -> None:
    try:
        if not dry:
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UserError(f"destination: cannot make the directory {directory}: {exc.strerror}") from None
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"destination: {there} is no directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"destination: no right to write to {there}")


def s3_client(access: Access) -> Any:
    """A boto3 client for the few calls outside the data path."""
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        connect_timeout=10,
        read_timeout=30,
        retries={"max_attempts": 2},
        s3={"addressing_style": "path"} if access.endpoint_url else {},
        signature_version=UNSIGNED if access.anonymous else None,
    )
    keys: dict[str, Any] = {}
    if access.keys:
        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), access.keys, strict=True))
    session = boto3_session(access)
    region = access.region or session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=access.endpoint_url, region_name=region, config=config, **keys)


def _check_bucket(bucket: str, prefix: str, access: Access, *, dry: bool) -> None:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    where = f"destination bucket `{bucket}`" + (f" at {access.endpoint_url}" if access.endpoint_url else "")
    try:
        client = s3_client(access)
        client.head_bucket(Bucket=bucket)
        if dry:
            return
        key = f"{prefix}/.ferry-preflight-{uuid.uuid4().hex}".lstrip("/")
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
    except NoCredentialsError:
        raise UserError(
            "destination: no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name "
            "them with `credentials: profile:NAME` or `credentials: block:NAME`"
        ) from None
    except ClientError as exc:
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = exc.response.get("Error", {}).get("Code")
        if status == 404:
            raise UserError(f"{where} does not exist. Create it, or correct `destination`") from None
        if status in (401, 403):
            what = "writing" if exc.operation_name != "HeadBucket" else "access"
            raise UserError(
                f"{where} refuses {what} with these credentials ({code}). Check `credentials` and the bucket's policy"
            ) from None
        if status in (301, 307, 400) and exc.operation_name == "HeadBucket":
            raise UserError(f"{where} answered HTTP {status}: is `region` right, and the name?") from None
        raise UserError(f"{where} answered HTTP {status} ({code}) to {exc.operation_name}") from None
    except BotoCoreError as exc:
        raise UserError(
            f"{where} cannot be reached ({type(exc).__name__}). Check `endpoint_url` and the network"
        ) from None
