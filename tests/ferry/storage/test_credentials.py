"""Where keys, region and endpoint of a bucket come from. No test asks a service for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ferry.core import ErrorClass, ObjectError, UserError
from ferry.storage.access import S3Access
from ferry.storage.s3 import Keys, credentials_of, endpoint_of, region_of
from ferry.storage.s3.credentials import session_with_credentials

PROFILES = """
[profile keys]
region = eu-central-1
aws_access_key_id = profile-id
aws_secret_access_key = profile-secret
"""


@pytest.fixture(autouse=True)
def _only_these_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "REGION", "DEFAULT_REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    (tmp_path / "config").write_text(PROFILES)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def keys_of(access: S3Access) -> Keys | None:
    return asyncio.run(credentials_of(access).current())


def test_a_profile() -> None:
    """Keys and region are those of the profile; the endpoint is AWS's in that region."""
    access = S3Access(profile="keys")
    assert keys_of(access) == Keys("profile-id", "profile-secret", None)
    assert (region_of(access), endpoint_of(access)) == ("eu-central-1", "https://s3.eu-central-1.amazonaws.com")
    assert region_of(S3Access(profile="keys", region="us-west-2")) == "us-west-2"


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's variables, with a session token."""
    for name, value in (("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "secret"), ("SESSION_TOKEN", "token")):
        monkeypatch.setenv(f"AWS_{name}", value)
    assert keys_of(S3Access()) == Keys("id", "secret", "token")
    assert region_of(S3Access()) == "us-east-1"


def test_keys_of_the_job_and_none_at_all() -> None:
    """Resolved keys are used as they are, and an anonymous access signs nothing; neither asks boto3 for a region."""
    assert keys_of(S3Access(keys=("id", "secret", None))) == Keys("id", "secret", None)
    assert keys_of(S3Access(anonymous=True, profile="missing")) is None
    assert region_of(S3Access(anonymous=True, profile="missing")) == "us-east-1"
    assert "secret" not in repr(S3Access(keys=("id", "secret", None)))


@pytest.mark.parametrize(
    ("access", "profile", "said"),
    [
        (S3Access(), None, "no AWS credentials were found. Set AWS_ACCESS_KEY_ID"),
        (S3Access(profile="missing"), None, "the AWS profile `missing` does not exist on this machine"),
        (S3Access(), "missing", "the AWS profile that AWS_PROFILE names does not exist on this machine"),
    ],
)
def test_what_is_missing_is_named(
    access: S3Access, profile: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's mistake, before any request."""
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(UserError, match=said):
        session_with_credentials(access)


def test_keys_that_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever boto3 raises is an error of the store, which names the class alone."""

    def fail(_self: object) -> None:
        raise RuntimeError("the token service is away")

    monkeypatch.setattr("botocore.credentials.Credentials.get_frozen_credentials", fail)
    with pytest.raises(ObjectError) as raised:
        keys_of(S3Access(profile="keys"))
    assert raised.value.error_class is ErrorClass.STORE_ERROR
    assert "(RuntimeError)" in str(raised.value)
