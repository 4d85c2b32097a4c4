"""Buckets of S3 stores: AWS, and all others that speak its API."""

from ferry.storage.s3.bucket import S3
from ferry.storage.s3.credentials import (
    Boto3Credentials,
    Credentials,
    StaticCredentials,
    credentials_of,
    endpoint_of,
    region_of,
)
from ferry.storage.s3.sigv4 import Keys

__all__ = [
    "S3",
    "Boto3Credentials",
    "Credentials",
    "Keys",
    "StaticCredentials",
    "credentials_of",
    "endpoint_of",
    "region_of",
]
