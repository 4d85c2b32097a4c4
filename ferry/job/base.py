"""Base class of the job's models: unknown keys are errors, and docstrings are the documentation of keys."""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ferry.core import short

T = TypeVar("T")


def _optional_in_schema(schema: dict[str, Any]) -> None:
    """Makes a mapping optional in the JSON schema, so that Prefect's form shows it as one line."""
    reference = schema.pop("$ref", None)
    if reference is not None:
        schema["anyOf"] = [{"$ref": reference}, {"type": "null"}]
        schema["default"] = None


# A mapping of settings that has its defaults if it is omitted or empty, as in `source:`.
Part = Annotated[
    T, BeforeValidator(lambda given: {} if given is None else given), Field(json_schema_extra=_optional_in_schema)
]


class Model(BaseModel):
    """A frozen pydantic model that refuses unknown keys and accepts keys under their old names."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        frozen=True,
        field_title_generator=lambda name, _: name,  # Prefect's form shows the keys as YAML has them
    )

    _old_names: ClassVar[dict[str, str]] = {}  # old names of keys, with their present names

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        """Raises ValueError for an unknown key, with the nearest known one."""
        if isinstance(data, dict):
            data = cls._renamed(data)
            for name in data:
                if name not in cls.model_fields:
                    near = cls._nested_keys(str(name)) or get_close_matches(
                        str(name), cls.model_fields, n=1, cutoff=0.5
                    )
                    hint = " or ".join(f"`{key}`" for key in near)
                    hint = f"; did you mean {hint}?" if near else f"; known keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key `{short(str(name))}`{hint}")
        return data

    @classmethod
    def _renamed(cls, data: dict[Any, Any]) -> dict[Any, Any]:
        """Returns the mapping with present key names. Until Ferry 1.0 an old name is accepted with a warning."""
        renamed = dict(data)
        for old, new in cls._old_names.items():
            if old not in data:
                continue
            if new in data:
                raise ValueError(f"`{old}` is the old name of `{new}`, and both are given; remove `{old}`")
            warnings.warn(
                f"`{old}` is now called `{new}`; rename it, since Ferry 1.0 will not accept the old name",
                FutureWarning,
                2,
            )
            renamed[new] = renamed.pop(old)
        return renamed

    @classmethod
    def _nested_keys(cls, name: str) -> list[str]:
        """Returns the paths of keys with this name one level deeper."""
        return [
            f"{field}.{name}"
            for field, info in cls.model_fields.items()
            if isinstance(info.annotation, type)
            and issubclass(info.annotation, Model)
            and name in info.annotation.model_fields
        ]
