"""What the parts of a job have in common: no unknown keys, and docstrings that become its documentation."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

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

    @model_validator(mode="before")
    @classmethod
    def _suggest(cls, data: Any) -> Any:
        """An unknown key is an error that names the nearest known one."""
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    near = cls._elsewhere(str(name)) or get_close_matches(str(name), cls.model_fields, n=1, cutoff=0.5)
                    hint = " or ".join(f"`{key}`" for key in near)
                    hint = f"; did you mean {hint}?" if near else f"; known keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key `{short(str(name))}`{hint}")
        return data

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
