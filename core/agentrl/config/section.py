"""What the sections of a configuration are made of: groups of keys, and parts that a name selects.

A *part* is whatever a plugin may provide: it is written as a name, or as ``{name: …, its keys}``, and checks its keys
itself once it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializationInfo, model_serializer

__all__ = [
    "AS_WRITTEN",
    "OptionalPart",
    "Part",
    "PartModel",
    "Section",
    "Selectable",
    "Settings",
    "Written",
    "named",
    "plain",
]

AS_WRITTEN = {"as_written": True}
"""The context of a dump that keeps what was written as it was written."""


class Written:
    """A value that YAML reads as a number, a boolean or null, with the text that it was written as.

    Whether `1000` is a number or a name depends on the key that it is set at: see ``agentrl.config.keys``. A
    ``Written`` is equal to whatever its value is equal to.
    """

    # Not a dataclass: pydantic would read it field by field.
    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("text", "value")

    def __init__(self, text: str, value: Any) -> None:
        self.text = text
        self.value = value

    def __eq__(self, other: object) -> bool:
        return bool(plain(self) == plain(other))

    def __repr__(self) -> str:
        return self.text


def plain(value: Any) -> Any:
    """``value`` with every ``Written`` in it replaced by the value that YAML reads."""
    if isinstance(value, Written):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(held) for key, held in value.items()}
    return [plain(held) for held in value] if isinstance(value, list) else value


class Section(BaseModel):
    """A group of keys. A key that it does not have is an error, and so is a value of the wrong type.

    Types are strict: `true` is not a number and `8.0` is not an integer, but an integer may stand for a float. Infinity
    and NaN are refused.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        ser_json_inf_nan="constants",
    )


class Settings(Section):
    """The base of the ``Settings`` that a part declares for the keys beside its name; checked as strictly as ours.

    The docstring under an attribute is the key's help text.
    """


class Selectable(BaseModel):
    """A name that selects a part, and the keys for that part beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="constants")

    @property
    def options(self) -> dict[str, Any]:
        """The keys beside the name, with the values that YAML reads."""
        options: dict[str, Any] = plain(self.written)
        return options

    @property
    def written(self) -> dict[str, Any]:
        """The keys beside the name; a scalar that the part may want as text is a ``Written``."""
        return dict(self.model_extra or {})

    def _keys(self, info: SerializationInfo) -> dict[str, Any]:
        return self.written if info.context == AS_WRITTEN else self.options


class PartModel(Selectable):
    """A part: its name, and beside it the keys that it takes."""

    name: str
    """A registered name, `dist/name`, `pkg.mod:Obj`, `pkg.mod.Obj` or `file.py:Obj`."""

    @model_serializer
    def _short(self, info: SerializationInfo) -> Any:
        """A part without keys is written as its name."""
        keys = self._keys(info)
        return {"name": self.name, **keys} if keys else self.name


def named(value: Any) -> Any:
    """``{name: …}`` for a part that is written as its name alone."""
    return {"name": value} if isinstance(value, str) else value


Part = Annotated[PartModel, BeforeValidator(named)]
OptionalPart = Annotated[PartModel | None, BeforeValidator(named)]
