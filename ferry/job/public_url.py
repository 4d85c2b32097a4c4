"""Templates of public addresses: under which URL visitors get an object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ferry.core import UserError
from ferry.job.templates import Field, tokens
from ferry.job.validators import no_secret_in_address

_SITE = re.compile(r"https?://[^/?#\s{}]+/?")
_LITERAL = re.compile(r"[!-~]*")
_NAME = "regexp_extract({key}, '[^/]*$')"
# Field -> SQL for its value
_FIELDS = {
    "key": "{key}",
    "key.name": _NAME,
    "key.stem": f"regexp_replace({_NAME}, '(.)\\.[^.]*$', '\\1')",
    "key.ext": f"nullif(regexp_extract({_NAME}, '.\\.([^.]*)$', 1), '')",
    "id": "{id}",
}


class PublicUrl(NamedTuple):
    """A template such as `https://img.new.example/{key}`. Values are percent-encoded; `/` in them stays."""

    text: str
    parts: tuple[str | Field, ...]

    @classmethod
    def parse(cls, text: str, what: str = "public_url") -> PublicUrl:
        """Returns the template. Raises UserError if visitors could not ask for its addresses."""
        template = cls(text, tuple(tokens(text, what)))
        names = [part.name for part in template.parts if isinstance(part, Field)]
        known = ", ".join(f"{{{name}}}" for name in _FIELDS)
        if not _SITE.match(text) or not all(
            _LITERAL.fullmatch(part) for part in template.parts if isinstance(part, str)
        ):
            raise UserError(
                f"{what} is not the template of a web address; write `https://img.new.example/{{key}}`, with "
                "characters that are not ASCII percent-encoded"
            )
        if unknown := sorted(set(names) - set(_FIELDS)):
            raise UserError(f"{what} names {{{unknown[0]}}}; the fields are {known}")
        if not {"key", "key.name", "key.stem", "id"}.intersection(names):
            raise UserError(f"{what} gives every object the same address; write {{key}} where the key goes")
        if "#" in text:
            raise UserError(f"{what} holds `#`; browsers do not send what follows it. Remove it, or write %23")
        return template

    def sql(self, columns: Mapping[str, str]) -> str:
        """Returns SQL for the address of a row. ``columns`` has the SQL of the row's `key` and `id`.

        The address is NULL if the row has no value for a field.
        """
        return " || ".join(
            f"'{part.replace(chr(39), chr(39) * 2)}'" if isinstance(part, str) else self._value(part, columns)
            for part in self.parts
        )

    @staticmethod
    def _value(field: Field, columns: Mapping[str, str]) -> str:
        value = _FIELDS[field.name].format_map(columns)
        if field.width:
            digits = f"nullif(regexp_extract(trim({value}), '^[0-9]+$'), '')"
            value = f"lpad({digits}, greatest(length({digits}), {field.width})::INT, '0')"
        value = {"lower": f"lower({value})", "upper": f"upper({value})"}.get(field.case, value)
        # DuckDB's url_encode leaves the unreserved characters of RFC 3986 (section 2.3) as they are
        return f"replace(url_encode({value}), '%2F', '/')"


def public_address(value: str | None, setting: str) -> str | None:
    """Validates a template of public addresses."""
    if value is None:
        return None
    no_secret_in_address(value, setting)
    try:
        PublicUrl.parse(value, setting)
    except UserError as error:
        raise ValueError(str(error)) from None
    return value
