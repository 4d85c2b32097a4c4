"""What the parts of a job have in common: no unknown keys, and docstrings that become its documentation."""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ferry.core import short

T = TypeVar("T")


def _or_nothing(schema: dict[str, Any]) -> None:
    """What is left out is nothing: Prefect's form shows one line of it, and not all that it could hold."""
    reference = schema.pop("$ref", None)
    if reference is not None:
        schema["anyOf"] = [{"$ref": reference}, {"type": "null"}]
        schema["default"] = None


# A mapping of settings that is as its defaults where nobody gives it, also as `source:` with nothing behind it.
Part = Annotated[T, BeforeValidator(lambda given: {} if given is None else given), Field(json_schema_extra=_or_nothing)]


class Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        frozen=True,
        field_title_generator=lambda name, _: name,  # the UI's form shows the keys as they stand in YAML
    )

    _old_names: ClassVar[dict[str, str]] = {}  # keys as they were spelled once, and their names now

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        """An unknown key is an error that names the nearest known one."""
        if isinstance(data, dict):
            data = cls._renamed(data)
            for name in data:
                if name not in cls.model_fields:
                    near = cls._elsewhere(str(name)) or get_close_matches(str(name), cls.model_fields, n=1, cutoff=0.5)
                    hint = " or ".join(f"`{key}`" for key in near)
                    hint = f"; did you mean {hint}?" if near else f"; known keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key `{short(str(name))}`{hint}")
        return data

    @classmethod
    def _renamed(cls, data: dict[Any, Any]) -> dict[Any, Any]:
        """The same keys by their present names; an old name is taken, with a warning, until Ferry 1.0."""
        renamed = dict(data)
        for old, new in cls._old_names.items():
            if old not in data:
                continue
            if new in data:
                raise ValueError(f"`{old}` is the old name of `{new}`, and both are given; keep `{new}`")
            warnings.warn(f"`{old}` is called `{new}` now; Ferry 1.0 will not accept the old name", FutureWarning, 2)
            renamed[new] = renamed.pop(old)
        return renamed

    @classmethod
    def _elsewhere(cls, name: str) -> list[str]:
        """Where a key of this name stands, one level below."""
        return [
            f"{field}.{name}"
            for field, info in cls.model_fields.items()
            if isinstance(info.annotation, type)
            and issubclass(info.annotation, Model)
            and name in info.annotation.model_fields
        ]
