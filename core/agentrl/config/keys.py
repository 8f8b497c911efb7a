"""The keys that a pydantic model knows, as dotted names."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = [
    "field_at",
    "has_short_form",
    "is_plain_union",
    "key_names",
    "known_keys",
    "model_at",
    "model_in",
    "type_at",
]


def known_keys(model: type[BaseModel]) -> Iterator[str]:
    """Every key of ``model``, those of nested models included: ``rollout``, ``rollout.group_size``, …"""
    for name, field in model.model_fields.items():
        yield name
        nested = model_in(field.annotation)
        if nested is not None:
            yield from (f"{name}.{key}" for key in known_keys(nested))


def key_names(model: type[BaseModel]) -> set[str]:
    """The names that ``model`` takes at its top level, aliases included."""
    aliases = {field.alias for field in model.model_fields.values() if field.alias}
    return set(model.model_fields) | aliases


def model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The nested model at ``path``, or ``None`` where something else is there."""
    current: type[BaseModel] | None = model
    for name in path:
        field = current.model_fields.get(str(name)) if current else None
        current = model_in(field.annotation) if field else None
    return current


def field_at(model: type[BaseModel], path: Sequence[str | int]) -> FieldInfo | None:
    """The field at ``path``, or ``None`` where there is none."""
    parent = model_at(model, path[:-1]) if path else None
    return parent.model_fields.get(str(path[-1])) if parent else None


def is_plain_union(field: FieldInfo | None) -> bool:
    """Whether a field takes one of several types, none of which has keys or items."""
    if field is None or get_origin(field.annotation) not in (Union, types.UnionType):
        return False
    return not any(get_origin(member) or model_in(member) for member in get_args(field.annotation))


def type_at(model: type[BaseModel], path: Sequence[str]) -> Any:
    """The type of the key at ``path``, in the mappings that a key holds too; ``Any`` where nothing is said of it."""
    annotation: Any = model
    for name in path:
        nested = model_in(annotation)
        if nested is not None:
            field = nested.model_fields.get(name)
            annotation = field.annotation if field else Any
        else:
            annotation = get_args(annotation)[-1] if get_origin(annotation) is dict else Any
    return annotation


def has_short_form(model: type[BaseModel]) -> bool:
    """Whether a section may be written as a name alone, which is its only required key."""
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    return required in (["name"], ["type"])


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, through ``Annotated``, ``Optional`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if getattr(annotation, "__origin__", None) in (list, dict, tuple):
        return None
    return next((model for inner in get_args(annotation) if (model := model_in(inner))), None)
