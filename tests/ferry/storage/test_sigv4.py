"""Signatures: the same as botocore's for any key, header and credentials."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from unittest import mock

import pytest
from botocore import auth, awsrequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.storage.endpoint import encoded
from ferry.storage.s3.sigv4 import EMPTY_SHA256, Keys, Signer

NOW = datetime(2026, 11, 24, 18, 0, 5, tzinfo=UTC)
LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/?")
KEYS = Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")


def botocore_signature(url: str, method: str, headers: dict[str, str], body: bytes, keys: Keys, now: datetime) -> str:
    """Returns botocore's Authorization header."""
    request = awsrequest.AWSRequest(method=method, url=url, headers=headers, data=body)
    request.context["payload_signing_enabled"] = True
    credentials = ReadOnlyCredentials(keys.key_id, keys.secret, keys.token)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now.replace(tzinfo=None)):
        auth.S3SigV4Auth(credentials, "s3", "eu-west-3").add_auth(request)
    return str(request.headers["Authorization"])


@settings(max_examples=200, deadline=None)
@given(
    key=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).filter(
        lambda key: (
            "//" not in key and "?" not in key and not {".", ".."} & set(key.split("/")) and key.strip("/") == key
        )
    ),
    meta=st.dictionaries(
        st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True), st.from_regex(r"[!-~]([ -~]{0,9}[!-~])?", fullmatch=True)
    ),
    body=st.binary(max_size=50),
    token=st.none() | st.just("token/+="),
    host=st.sampled_from(["s3.eu-west-3.amazonaws.com", "127.0.0.1:8333"]),
)
def test_any_put_is_signed_as_botocore_signs_it(
    key: list[str], meta: dict[str, str], body: bytes, token: str | None, host: str
) -> None:
    """The Authorization header of any PUT equals botocore's."""
    keys = Keys(KEYS.key_id, KEYS.secret, token)
    headers = {"content-type": "image/jpeg", **{f"x-amz-meta-{name}": value for name, value in meta.items()}}
    sha256 = hashlib.sha256(body).hexdigest()
    path = "/bucket/" + encoded("/".join(key))
    ours = Signer(host, "eu-west-3").headers("PUT", path, headers, sha256, keys, NOW)
    # botocore's canonical form squeezes runs of blanks, as the specification says
    squeezed = {name: " ".join(value.split()) for name, value in headers.items()}
    if squeezed == headers:
        assert ours["authorization"] == botocore_signature(f"http://{host}{path}", "PUT", headers, body, keys, NOW)


def test_a_get_is_signed_with_the_empty_payload() -> None:
    """A GET is signed with the SHA-256 of the empty string (S3 API)."""
    ours = Signer("s3.eu-west-3.amazonaws.com", "eu-west-3").headers("GET", "/b/k", {}, EMPTY_SHA256, KEYS, NOW)
    assert ours["authorization"] == botocore_signature(
        "https://s3.eu-west-3.amazonaws.com/b/k", "GET", {}, b"", KEYS, NOW
    )


@pytest.mark.parametrize("query", ["uploads=", "uploadId=a%2Fb~c", "a=1&b=%20"])
def test_a_query_is_signed(query: str) -> None:
    """A canonical query is signed as botocore signs it."""
    ours = Signer("h", "eu-west-3").headers("POST", "/b/k", {}, EMPTY_SHA256, KEYS, NOW, query)
    assert ours["authorization"] == botocore_signature(f"http://h/b/k?{query}", "POST", {}, b"", KEYS, NOW)


def test_the_key_of_the_day_changes_with_day_and_credentials() -> None:
    """Signatures stay valid after midnight and after the credentials change."""
    signer = Signer("h", "eu-west-3")
    other = Keys("AKIDOTHER", "another")
    for keys, now in ((KEYS, NOW), (KEYS, NOW + timedelta(days=1)), (other, NOW + timedelta(days=1)), (KEYS, NOW)):
        ours = signer.headers("PUT", "/b/k", {}, EMPTY_SHA256, keys, now)
        assert ours["authorization"] == botocore_signature("http://h/b/k", "PUT", {}, b"", keys, now)


@pytest.mark.parametrize("secret", ["secret", "token"])
def test_keys_do_not_show_their_secrets(secret: str) -> None:
    """The repr of Keys shows no secret, since it may be logged."""
    assert "topsecret" not in repr(Keys("id", **{"secret": "x", secret: "topsecret"}))
