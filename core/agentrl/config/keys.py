"""The keys of a pydantic model, by dotted name, and values as the types of their keys take them.

A key that holds text takes a value as it was written, whatever YAML would read it as.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agentrl.config.section import Selectable, Written, plain

__all__ = [
    "field_at",
    "fitted",
    "fitted_to",
    "has_short_form",
    "holds_text",
    "is_plain_union",
    "is_short",
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
    """The names of the keys at the top level of ``model``, as they are written."""
    return {field.alias or name for name, field in model.model_fields.items()}


def model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The nested model at ``path``, or ``None`` where there is no model."""
    current: type[BaseModel] | None = model
    for name in path:
        field = current.model_fields.get(str(name)) if current else None
        current = model_in(field.annotation) if field else None
    return current


def field_at(model: type[BaseModel], path: Sequence[str | int]) -> FieldInfo | None:
    """The field at ``path``, or ``None`` where there is none."""
    parent = model_at(model, path[:-1]) if path else None
    return _fields(parent).get(str(path[-1])) if parent else None


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of ``model`` by the names of their keys: an alias, where the name is a word of Python."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def is_plain_union(field: FieldInfo | None) -> bool:
    """Whether a field is a union of types that have neither keys nor items, such as ``int | None``."""
    if field is None or get_origin(field.annotation) not in (Union, types.UnionType):
        return False
    return not any(get_origin(member) or model_in(member) for member in get_args(field.annotation))


def type_at(model: type[BaseModel], path: Sequence[str]) -> Any:
    """The annotation of the key at ``path``, which may lead into a mapping; ``Any`` where nothing declares it."""
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
    """Whether a name may stand for the whole section, because it is the section's only required key."""
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    return required in (["name"], ["type"], ["action"])


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, within ``Annotated`` and unions, but not within a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if getattr(annotation, "__origin__", None) in (list, dict, tuple):
        return None
    return next((model for inner in get_args(annotation) if (model := model_in(inner))), None)


def fitted(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as the fields of ``model`` take them. The keys of a part are left as they are: the part fits them."""
    kept = issubclass(model, Selectable)
    return {
        key: fitted_to(model.model_fields[key].annotation, value)
        if key in model.model_fields
        else value
        if kept
        else plain(value)
        for key, value in values.items()
    }


def fitted_to(annotation: Any, value: Any) -> Any:
    """``value`` as a field annotated with ``annotation`` takes it: a ``Written`` becomes its text or its value."""
    if isinstance(value, Written):
        if _is_textual(annotation):
            return None if value.value is None and (_takes_null(annotation) or not value.text) else value.text
        return fitted_to(annotation, value.value)
    model, arguments = model_in(annotation), _items(annotation)
    if isinstance(value, Mapping):
        if model is not None:
            return fitted(model, value)
        return {key: fitted_to(arguments.get(dict, Any), held) for key, held in value.items()}
    return [fitted_to(arguments.get(list, Any), held) for held in value] if isinstance(value, list) else value


def holds_text(model: type[BaseModel], names: Sequence[str]) -> bool:
    """Whether the key at ``names`` takes text: a string, a path, or a name that stands for a whole section."""
    return _is_textual(type_at(model, names))


def is_short(model: type[BaseModel], names: Sequence[str]) -> bool:
    """Whether a name may stand for the section at ``names``."""
    held = model_in(type_at(model, names))
    return held is not None and has_short_form(held)


def _members(annotation: Any) -> list[Any]:
    """The members of a union, or the one type that an annotation is."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for each in get_args(annotation) for member in _members(each)]
    return [annotation]


def _takes_null(annotation: Any) -> bool:
    return any(member in (None, types.NoneType) for member in _members(annotation))


def _is_textual(annotation: Any) -> bool:
    members = [member for member in _members(annotation) if member not in (None, types.NoneType)]
    return bool(members) and all(map(_is_text, members))


def _is_text(member: Any) -> bool:
    if get_origin(member) is Literal:
        return all(isinstance(value, str) for value in get_args(member))
    if not isinstance(member, type) or get_origin(member) is not None:
        return False
    return issubclass(member, str | PurePath) or (issubclass(member, BaseModel) and has_short_form(member))


def _items(annotation: Any) -> dict[type, Any]:
    """For ``list`` and ``dict``, where the annotation allows them, the type of their items."""
    return {
        kind: get_args(member)[-1]
        for member in _members(annotation)
        for kind in (list, dict)
        if get_origin(member) is kind
    }
