"""Base class of the job's models: unknown keys are errors, and docstrings are the documentation of keys."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

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
        frozen=True,
        field_title_generator=lambda name, _: name,  # Prefect's form shows the keys as YAML has them
    )

    _old_names: ClassVar[dict[str, str]] = {}  # old names of keys, with their present names

    @model_validator(mode="wrap")
    @classmethod
    def _known_keys(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Adds the unknown keys, each with the nearest known one, to the other mistakes."""
        if not isinstance(data, dict):
            return handler(data)
        data = cls._renamed(data)
        unknown = {name: cls._nearest(str(name)) for name in data if name not in cls.model_fields}
        if not unknown:
            return handler(data)
        meant = {near[0] for near in unknown.values() if near}
        found = []
        try:
            handler({name: value for name, value in data.items() if name in cls.model_fields})
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                if not (error["type"] == "missing" and error["loc"][:1] and error["loc"][0] in meant):
                    kind = PydanticCustomError(error["type"], "{words}", {"words": error["msg"]})
                    found.append(InitErrorDetails(type=kind, loc=error["loc"], input=error["input"]))
        for name, near in unknown.items():
            hint = " or ".join(f"`{key}`" for key in near)
            hint = f"did you mean {hint}?" if near else f"known keys: {', '.join(cls.model_fields)}"
            words = f"unknown key `{short(str(name))}`; {hint}"
            kind = PydanticCustomError("unknown_key", "{words}", {"words": words})
            found.append(InitErrorDetails(type=kind, loc=(str(name),), input=None))
        raise ValidationError.from_exception_data(cls.__name__, found)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Adds the docstrings of the keys, as in pydantic's `use_attribute_docstrings`.

        That setting reads the source of each model when it is imported, a tenth of the time of `ferry status`.
        """
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})  # not those of a serialised ModelOfTypes
        for name, text in key_docstrings(cls).items():
            if name in properties:
                properties[name]["description"] = text
        return schema

    @classmethod
    def _nearest(cls, name: str) -> list[str]:
        """Returns the keys that may be meant by an unknown one."""
        return cls._nested_keys(name) or get_close_matches(name, cls.model_fields, n=1, cutoff=0.5)

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


@functools.cache
def key_docstrings(model: type[Model]) -> Mapping[str, str]:
    """Returns the text below each key of a model, from its source."""
    found = {}
    for base in reversed(model.__mro__[: model.__mro__.index(Model)]):
        for key, text in pairwise(_classes_of(base.__module__)[base.__name__].body):
            if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(text, ast.Expr):
                found[key.target.id] = inspect.cleandoc(ast.literal_eval(text.value))
    return found


@functools.cache
def _classes_of(module: str) -> dict[str, ast.ClassDef]:
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


class ModelOfTypes(Model):
    """A model whose `type` decides which other keys it has. ``_keys`` has those of each type, required ones first.

    One model for all types keeps the JSON schema, Prefect's form and the reference flat.
    """

    _keys: ClassVar[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]]  # type -> required keys, optional keys

    type: str

    @model_validator(mode="after")
    def _keys_of_type(self) -> Self:
        required, optional = self._keys[self.type]
        for key in sorted(self.model_fields_set - {"type", *required, *optional}):
            known = ", ".join(f"`{name}`" for name in (*required, *optional)) or "no other key"
            raise ValueError(f"`{key}` does not belong to `type: {self.type}`, which has {known}")
        for key in required:
            if getattr(self, key) is None:
                raise ValueError(f"`type: {self.type}` needs `{key}`")
        return self

    @model_serializer(mode="wrap")
    def _only_keys_of_type(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        keys = {"type", *self._keys[self.type][0], *self._keys[self.type][1]}
        return {key: value for key, value in serialise(self).items() if key in keys and value is not None}
