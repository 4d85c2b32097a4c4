"""Durations and sizes with units: `30m`, `20MB`. Each function raises ValueError with what to write instead."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from ferry.core import short

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*\Z")
_FACTORS = {
    "": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20,
    "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_BYTES = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)(/s)?\s*\Z")
UNLIMITED_BYTES = 2**50  # more than any store takes, and exact in JSON
MAX_DURATION_S = 10 * 366 * 86_400


def _number(text: str) -> float | None:
    """Returns the number that a text without a unit is for pydantic, such as `1e3`; None for other text."""
    try:
        return float(text)
    except ValueError:
        return None


def duration(value: Any) -> float:
    """Returns the seconds of a number or of text such as `90s`, `30m`, `20h`, `7d`, `4w`; ten years at most."""
    expected = "write a number of seconds, or a duration such as `30m`, `20h`, `7d`, `4w`"
    if isinstance(value, str):
        found = _DURATION.match(value.lower())
        if found is None or found[2] not in _SECONDS:
            raise ValueError(f"`{short(value)}` is not a duration; {expected}")
        value = float(found[1]) * _SECONDS[found[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(expected)
    if not 0 <= value <= MAX_DURATION_S:
        raise ValueError(f"a duration of {value:g} s is out of range; {expected}, from 0 to ten years")
    return float(value)


def size(text: str, key: str, instead: str) -> float:
    """Returns the bytes of text such as `10MB` or `10MiB`."""
    if (number := _number(text)) is not None:
        return number
    found = _BYTES.match(text)
    if found is None or found[2] not in _FACTORS or (found[3] and not key.endswith("_per_s")):
        bits = found is not None and re.fullmatch(r"(?i)[kmgt]i?b(it)?", found[2])
        hint = "the unit is bytes, not bits; " if bits else ""
        raise ValueError(f"{key} is neither a number nor a number with a unit; {hint}{instead}")
    return round(float(found[1]) * _FACTORS[found[2]])


def _seconds(value: Any) -> Any:
    return duration(value) if isinstance(value, str) and _number(value) is None else value


def _bytes_or_off(value: Any, key: str) -> Any:
    if value is False or (isinstance(value, str) and value.strip().lower() == "off"):  # YAML reads `off` as False
        return UNLIMITED_BYTES
    return size(value, key, "write bytes, or `20MB`, `1GiB`, `off`") if isinstance(value, str) else value


_NUMBER_OR_TEXT = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]})
Duration = Annotated[float | str, BeforeValidator(duration)]
Seconds = Annotated[float, BeforeValidator(_seconds), _NUMBER_OR_TEXT]
MaxBytes = Annotated[int, BeforeValidator(partial(_bytes_or_off, key="max_bytes")), _NUMBER_OR_TEXT]
SpoolBytes = Annotated[int, BeforeValidator(partial(_bytes_or_off, key="spool_bytes")), _NUMBER_OR_TEXT]
