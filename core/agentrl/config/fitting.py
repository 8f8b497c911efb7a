"""Values as the types of their keys take them: text stays as it was written, whatever YAML would make of it."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from agentrl.config.keys import has_short_form, model_in, type_at
from agentrl.config.models import Selectable
from agentrl.config.written import Written, plain

__all__ = ["fitted", "fitted_to", "holds_text", "is_short"]


def fitted(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` for the keys of ``model``. What a part takes beside its name stays as it is, for the part to fit."""
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
    """``value`` for a key of the type ``annotation``."""
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
    """Whether the key at ``names`` takes text, or a name for short."""
    return _is_textual(type_at(model, names))


def is_short(model: type[BaseModel], names: Sequence[str]) -> bool:
    """Whether the key at ``names`` takes a name in the place of its keys."""
    held = model_in(type_at(model, names))
    return held is not None and has_short_form(held)


def _members(annotation: Any) -> list[Any]:
    """The types that a value may have."""
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
    """By the kind of a collection, the type of what it holds."""
    return {
        kind: get_args(member)[-1]
        for member in _members(annotation)
        for kind in (list, dict)
        if get_origin(member) is kind
    }
