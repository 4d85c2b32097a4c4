"""The job's `source.auth`: a credential for web servers, by reference."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from ferry.core import holds_secret, short
from ferry.job.base import ModelOfTypes
from ferry.job.validators import ADDRESS_SCHEMA, SECRET_REF, no_secret_in_address, sendable

_LITERAL = (
    "holds a literal value. A job must not hold secrets: write `secret:BLOCK` (a Prefect Secret block) or `env:NAME` "
    "(an environment variable where the work runs)"
)


def _reference(value: str) -> str:
    if not SECRET_REF.match(value):
        raise ValueError(_LITERAL)
    return value


def _name(value: str) -> str:
    sendable(value, "the name")
    if not re.fullmatch(r"[A-Za-z0-9_.\[\]-]+", value):
        raise ValueError("is not the name of a header or of a query parameter")
    return value


Reference = Annotated[str, AfterValidator(_reference), Field(json_schema_extra={"pattern": r"^(secret|env):\S+$"})]


class SourceAuth(ModelOfTypes):
    """A credential for web servers: for the list, and for objects. Secrets are references (`secret:BLOCK` or `env:NAME`)."""

    _keys = {
        "bearer": (("token",), ()),
        "api_key": (("name", "api_key"), ("location",)),
        "http_basic": (("username", "password"), ()),
        "oauth2_client_credentials": (
            ("access_token_url", "client_id", "client_secret"),
            ("access_token_request_data",),
        ),
    }

    type: Literal["bearer", "api_key", "http_basic", "oauth2_client_credentials"]
    """`bearer` (a fixed token); `api_key` (a header or a query parameter); `http_basic`; `oauth2_client_credentials` (tokens that Ferry requests, and renews during a run)."""
    token: Reference | None = None
    """`bearer`: the token."""
    name: Annotated[str | None, AfterValidator(lambda name: name and _name(name))] = None
    """`api_key`: name of the header or of the query parameter."""
    api_key: Reference | None = None
    """`api_key`: the key."""
    location: Literal["header", "query"] = "header"
    """`api_key`: whether `name` is a header or a query parameter."""
    username: str | None = None
    """`http_basic`: the user name, as text or a reference."""
    password: Reference | None = None
    """`http_basic`: the password."""
    access_token_url: Annotated[str | None, Field(json_schema_extra=ADDRESS_SCHEMA)] = None
    """`oauth2_client_credentials`: URL that gives tokens, with https."""
    client_id: str | None = None
    """`oauth2_client_credentials`: the client's ID, as text or a reference."""
    client_secret: Reference | None = None
    """`oauth2_client_credentials`: the client's secret."""
    access_token_request_data: dict[str, str] = {}
    """`oauth2_client_credentials`: further fields of the request for a token: `{scope: images.read}`. Values are text or references."""

    @field_validator("access_token_url")
    @classmethod
    def _https(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.match(r"https://[^/\s]|http://(127\.0\.0\.1|localhost)[:/]", value):
            raise ValueError("access_token_url must begin with `https://`, since the client's secret is sent there")
        return no_secret_in_address(value, "source.auth.access_token_url")

    @field_validator("access_token_request_data")
    @classmethod
    def _no_literal_secret(cls, values: dict[str, str]) -> dict[str, str]:
        for name, value in values.items():
            if not SECRET_REF.match(value) and holds_secret(f"?{name}={value}"):
                raise ValueError(f"`{short(name)}` {_LITERAL}")
        return values

    def header_name(self) -> str | None:
        """Returns the header that carries the credential, None for a query parameter."""
        if self.type != "api_key":
            return "Authorization"
        return self.name if self.location == "header" else None

    def references(self) -> dict[str, str]:
        """Returns the references to secrets by key, such as `client_secret: env:CS`."""
        given: dict[str, Any] = self.model_dump(exclude={"access_token_request_data"})
        given |= {f"access_token_request_data.{name}": value for name, value in self.access_token_request_data.items()}
        return {key: value for key, value in given.items() if isinstance(value, str) and SECRET_REF.match(value)}
