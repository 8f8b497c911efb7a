"""An algorithm: credit, advantage, normalisation, correction and objective put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from agentrl.algorithms.contract import Advantage, Correction, Credit, Normalisation, Objective
from agentrl.config.models import Part
from agentrl.errors import ConfigError, near_matches

if TYPE_CHECKING:
    from agentrl.plugins import Plugins

__all__ = ["Algorithm", "Preset", "build_algorithm"]

KIND = "algorithms"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One part in every slot; see ``training.contract`` for what each does."""

    name: str
    credit: Credit
    advantage: Advantage
    normalisation: Normalisation
    correction: Correction
    objective: Objective


@dataclass(frozen=True, slots=True)
class Preset:
    """A named choice of parts, each as the configuration would write it: ``{"name": …, its keys}``."""

    credit: Mapping[str, Any]
    advantage: Mapping[str, Any]
    normalisation: Mapping[str, Any]
    correction: Mapping[str, Any]
    objective: Mapping[str, Any]

    def overridden(self, slot: str, choice: object) -> Mapping[str, Any]:
        """This preset's part in ``slot`` with the keys of ``choice`` over its own, or the part that it names."""
        preset: Mapping[str, Any] = getattr(self, slot)
        if isinstance(choice, str):
            choice = {"name": choice}
        if not isinstance(choice, Mapping):
            raise ConfigError(
                f"algorithm.{slot}={choice!r} is neither a name nor keys",
                fix=f"write algorithm.{slot}: {preset['name']}, or its keys below it",
            )
        name = _qualified(slot, str(choice.get("name", preset["name"])))
        return {**(preset if name == preset["name"] else {}), **choice, "name": name}


SLOTS = tuple(field.name for field in fields(Preset))


def build_algorithm(plugins: Plugins, part: Part) -> Algorithm:
    """The algorithm that ``part`` names, its slots overridden by the keys beside the name.

    The name is that of a ``Preset``. A slot is overridden by a name, with or without the slot's prefix
    (``objective: clip``), by keys of the preset's own part (``objective: {clip_high: 0.28}``), or by both.
    Raises ``ConfigError`` for a name, a slot or a key that does not exist, or a key that could have no effect.
    """
    preset = plugins.get(KIND, part.name)
    if not isinstance(preset, Preset):
        raise ConfigError(
            f"algorithm={part.name!r} is a part of an algorithm, not an algorithm",
            fix="name a preset such as grpo, and the part in its slot: algorithm: {name: grpo, objective: …}",
        )
    for key in part.options:
        if key not in SLOTS:
            raise ConfigError(f"algorithm.{key} does not exist", fix=near_matches(key, SLOTS))
    parts = {slot: _build(plugins, slot, preset.overridden(slot, part.options.get(slot, {}))) for slot in SLOTS}
    for slot, built in parts.items():
        _refuse_without_effect(part.options, slot, built)
    return Algorithm(name=part.name, **parts)


def _refuse_without_effect(options: Mapping[str, Any], slot: str, built: object) -> None:
    """Raise ``ConfigError`` for a key that the part in ``slot`` makes meaningless in another slot."""
    for other, keys in getattr(built, "LEAVES_WITHOUT_EFFECT", {}).items():
        given = options.get(other)
        for key in keys:
            if isinstance(given, Mapping) and key in given:
                raise ConfigError(
                    f"algorithm.{other}.{key} has no effect beside this algorithm.{slot}",
                    fix=f"leave it out, or choose another algorithm.{slot}",
                )


def _build(plugins: Plugins, slot: str, choice: Mapping[str, Any]) -> Any:
    try:
        part = TypeAdapter(Part).validate_python(dict(choice))
    except ValidationError as error:
        raise ConfigError(f"algorithm.{slot}={dict(choice)!r} is not a part") from error
    return plugins.build(KIND, part, at=f"algorithm.{slot}")


def _qualified(slot: str, name: str) -> str:
    """``clip`` in the slot ``objective`` is ``objective.clip``; references stay as they are."""
    prefix = name.partition(".")[0]
    if prefix in SLOTS and prefix != slot:
        raise ConfigError(
            f"algorithm.{slot}={name!r} is a part of another slot", fix=f"write algorithm.{prefix}: {name}"
        )
    return name if any(mark in name for mark in ".:/") else f"{slot}.{name}"
