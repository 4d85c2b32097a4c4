"""jinja2 with the filters and the escaping of all pages."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from ferry.core import duration, escaped, size

if TYPE_CHECKING:
    import jinja2

CLIPPED = 300  # characters of a name that a page shows; a list may have names of any length


def render(package: str, template: str, /, **values: Any) -> str:
    """Returns a page: ``template`` is a file below ``templates/`` of ``package``, such as `ferry.report`.

    Templates extend `base.html` and import the macros of `parts.html`. Every text is escaped for HTML, wherever it
    stands in the template; characters that are not printable (controls, bidi marks) are shown as escapes. A value that
    the template names and the caller did not give is an error.

    | filter | of | shows |
    |---|---|---|
    | `number` | 1234567 | 1,234,567 |
    | `size` | bytes | 63.4 kB |
    | `duration` | seconds | 1:02:03 |
    | `percent` | a share, 0.0123 | 1.2% |
    | `moment` | an aware datetime | 2026-02-03 04:05:06 UTC |
    | `clip` | a name | its first ``CLIPPED`` characters, and how many it has |
    """
    return _environment(package).get_template(template).render(**values)


@cache
def _environment(package: str) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("ferry.pages")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda count: f"{count:,}", "size": size, "duration": duration, "percent": percent,
        "moment": _moment, "clip": _clip,
    }  # fmt: skip
    return environment


def _shown(value: Any) -> Any:
    """Returns what the page says: texts are made printable before jinja2 escapes them, markup stays."""
    return escaped(value) if type(value) is str else value


def percent(share: float) -> str:
    """Returns a share in percent. Neither 0% nor 100% is said of a share that only rounds to it."""
    text = f"{share:.1%}"
    if text == "100.0%":
        return "100%" if share == 1 else "99.9%"
    if text == "0.0%":
        return "0%" if share == 0 else "under 0.1%"
    return text


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _clip(text: str) -> str:
    return text if len(text) <= CLIPPED else f"{text[:CLIPPED]}… ({len(text):,} characters)"
