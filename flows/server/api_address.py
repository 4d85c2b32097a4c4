"""The address of Prefect's API and a check that it answers, from Prefect's settings, before Prefect is imported.

As in Prefect, the environment takes precedence over the active profile (`prefect config set`).
"""

from __future__ import annotations

import base64
import functools
import http.client
import importlib.metadata
import json
import os
import ssl
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from ferry.core import UserError, escaped
from flows.server import working_directory

VERSION = importlib.metadata.version("prefect")
URL = "PREFECT_API_URL"
SET_BY_PREFECT = {"user-agent", "prefect-csrf-token", "prefect-csrf-client"}  # custom headers do not replace these
ANSWER_S = 10.0


class Profile(NamedTuple):
    """Prefect's active profile."""

    name: str
    file: Path
    settings: dict[str, str]


@functools.cache
def profile() -> Profile | None:
    """Returns the active profile, or None, as Prefect's default `ephemeral` names no server.

    Raises UserError for a damaged file.
    """
    file = _profiles_file()
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise UserError(
            f"Prefect's profiles in {file} cannot be read ({exc}). Repair the file, or set {URL} in the environment"
        ) from None
    name = os.environ.get("PREFECT_PROFILE") or data.get("active")
    profiles = data.get("profiles")
    settings = profiles.get(name) if isinstance(profiles, dict) and isinstance(name, str) else None
    if not isinstance(settings, dict):
        return None
    return Profile(str(name), file, {key: str(value) for key, value in settings.items()})


def _profiles_file() -> Path:
    if named := os.environ.get("PREFECT_PROFILES_PATH"):
        return Path(named)
    home = os.environ.get("PREFECT_HOME")
    return (Path(home) if home else Path("~/.prefect")).expanduser() / "profiles.toml"


def setting(name: str) -> str:
    """Returns a client setting of Prefect; "" if it is not set."""
    if value := os.environ.get(name):
        return value
    active = profile()
    return active.settings.get(name, "") if active else ""


@functools.cache
def adopt_profile() -> Profile | None:
    """Copy the API's address from the profile to the environment, if that has none. Returns the profile, or None.

    An empty PREFECT_API_URL in the environment overrides the profile: `ferry run` then starts a local server.
    """
    if URL in os.environ:
        return None
    active = profile()
    if active is None or not active.settings.get(URL):
        return None
    os.environ[URL] = active.settings[URL]
    return active


def given_url() -> str:
    """Returns the address from the environment or the profile; "" if neither has one."""
    adopt_profile()
    return os.environ.get(URL, "")


def _where_from() -> str:
    active = adopt_profile()
    return f"{URL} of the profile `{active.name}` in {active.file}" if active else URL


def given_server(command: str, instead: str = "") -> str:
    """Returns the address of the user's Prefect server, for a command that needs one; sets what `import prefect` reads.

    Raises UserError if no address is set, the server does not answer, or it has another major version. The message for
    a missing address ends with ``instead``.
    """
    url = given_url()
    working_directory.leave()
    if not url:
        raise UserError(
            f"{command} needs a Prefect server, but PREFECT_API_URL is not set, neither in the environment nor in "
            f"Prefect's active profile. Set it: `export PREFECT_API_URL=http://HOST:4200/api`{instead}"
        )
    check_reachable(url, "Start the server, or correct the address")
    return url


def version_problem(url: str, answer: Any) -> str | None:
    """Returns why this Ferry cannot use a server of version ``answer``, or None if it can, or if it is unknown.

    | Ferry's Prefect | the server's answer | problem |
    |---|---|---|
    | 3.8.8 | 3.x | no |
    | 3.8.8 | 2.20.4, 4.0.0 | another major version: another API |
    | any | not a version | no: Prefect Cloud, or a request for authentication |
    """
    major = answer.partition(".")[0] if isinstance(answer, str) else ""
    ours = VERSION.partition(".")[0]
    if not major.isdecimal() or major == ours:
        return None
    return (
        f"the Prefect server at {url} (PREFECT_API_URL) has version {answer[:20]}, and Ferry uses Prefect "
        f"{VERSION}: the major versions must be equal. Use a server of Prefect {ours}, or a Ferry for Prefect {major}"
    )


LOCALLY = "Start it, or use a local server: set an empty PREFECT_API_URL, as in `PREFECT_API_URL= ferry ...`"


def check_reachable(url: str, instead: str = LOCALLY) -> None:
    """Raises UserError if no server answers at ``url``, or one of another major version.

    A request for authentication (401) counts as an answer. Prints the source of an address that comes from a profile.
    """
    where = _where_from()
    try:
        if not url.lower().startswith(("http:", "https:")):
            raise ValueError(f"`{url}` does not begin with http:// or https://")
        asked = urllib.request.Request(f"{url.rstrip('/')}/admin/version")
        for name, value in _headers().items():
            asked.add_unredirected_header(name, value)
        with urllib.request.urlopen(asked, timeout=ANSWER_S, context=_tls(url)) as answer:
            said = answer.read(1000)
    except urllib.error.HTTPError:
        said = b"null"
    except ValueError as exc:
        raise UserError(f"{where} is not a valid address: {exc}. Example: http://HOST:4200/api") from None
    except (OSError, http.client.HTTPException) as exc:
        reason = getattr(exc, "reason", exc)
        if isinstance(reason, ssl.SSLError):
            raise UserError(_tls_problem(url, where, reason)) from None
        raise UserError(f"the Prefect server at {url} ({where}) does not answer: {reason}. {instead}") from None
    try:
        version = json.loads(said)
    except ValueError:
        raise UserError(
            f"the server at {url} ({where}) is not a Prefect API. An API's address ends in `/api`: http://HOST:4200/api"
        ) from None
    if problem := version_problem(url, version):
        raise UserError(problem)
    if where != URL:
        print(escaped(f"Prefect server: {url} ({where})"), file=sys.stderr)


def _headers() -> dict[str, str]:
    """Returns the headers that Prefect's client would send."""
    headers = {}
    if user := setting("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    elif key := setting("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    if text := setting("PREFECT_CLIENT_CUSTOM_HEADERS"):
        try:
            custom = json.loads(text)
            pairs = [(str(name), str(value)) for name, value in custom.items()]
        except (ValueError, AttributeError):
            raise UserError(
                'PREFECT_CLIENT_CUSTOM_HEADERS is not a JSON object of names and values, such as {"X-Team": "media"}'
            ) from None
        headers.update((name, value) for name, value in pairs if name.lower() not in SET_BY_PREFECT)
    return headers


def _tls(url: str) -> ssl.SSLContext | None:
    """Returns TLS settings as Prefect's client has them: authorities of certifi, or of a configured file."""
    if not url.lower().startswith("https:"):
        return None
    if setting("PREFECT_API_TLS_INSECURE_SKIP_VERIFY").lower() in ("1", "true", "t", "yes", "y", "on"):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    import certifi

    file = setting("PREFECT_API_SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE") or certifi.where()
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as exc:
        raise UserError(f"the certificates in PREFECT_API_SSL_CERT_FILE, {file}, cannot be read: {exc}") from None


def _tls_problem(url: str, where: str, error: ssl.SSLError) -> str:
    why = getattr(error, "verify_message", "") or error.reason or str(error)
    return (
        f"the Prefect server at {url} ({where}) answers, but TLS failed: {why}. For a private authority, set "
        "PREFECT_API_SSL_CERT_FILE to its PEM file, in the environment or with `prefect config set`"
    )
