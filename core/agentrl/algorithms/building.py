"""How the ``algorithm`` section of a configuration becomes an algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from agentrl.algorithms.contract import Algorithm, Preset
from agentrl.algorithms.soundness import check_algorithm
from agentrl.config.section import Part
from agentrl.errors import ConfigError, PluginError, near_matches

if TYPE_CHECKING:
    from agentrl.plugins import Plugins

__all__ = ["build_algorithm"]

_PRESETS, _PARTS = "algorithms", "parts"
_SERIES = ("filter", "shaping", "penalties")
"""Slots that hold any number of parts, in order."""
_SLOTS = ("credit", "advantage", "normalisation", "correction", "objective", "critic", *_SERIES)
_PREFIXES = {slot: {"penalties": "penalty"}.get(slot, slot) for slot in _SLOTS}
"""What the names of the parts of a slot begin with."""


def build_algorithm(plugins: Plugins, part: Part, *, updates: int = 1) -> Algorithm:
    """Build the algorithm that ``part``, the configuration's ``algorithm`` section, describes.

    Its name is that of a ``Preset``. A slot is overridden by a name, with or without the slot's prefix
    (``objective: clip``), by keys of the preset's own part (``objective: {clip_high: 0.28}``), or by both; ``filter``,
    ``shaping`` and ``penalties`` also by a list of such or by null, and ``critic`` by null. ``updates`` is how many
    updates a step has. Raises ``ConfigError`` for a name, a slot or a key that does not exist, a key that could have no
    effect, or parts that make no sense together, and ``PluginError`` for an entry that is registered in the wrong
    group.
    """
    preset = _preset(plugins, part.name)
    for key in part.options:
        if key not in _SLOTS:
            raise ConfigError(f"algorithm.{key} does not exist", fix=near_matches(key, _SLOTS))
    names: dict[int, str] = {}
    parts = {slot: _fill(plugins, slot, getattr(preset, slot), part.options, names) for slot in _SLOTS}
    algorithm = Algorithm(name=part.name, command=preset.command, updates=updates, **parts)
    check_algorithm(algorithm, part.options, names)
    return algorithm


def _fill(plugins: Plugins, slot: str, preset: Any, options: Mapping[str, Any], names: dict[int, str]) -> Any:
    """What is in ``slot``: a part, ``None``, or a tuple of parts; the name of each is added to ``names``."""
    if slot in _SERIES:
        chosen = options.get(slot, preset)
        usual = [preset] if isinstance(preset, Mapping) else list(preset)
        listed = [] if chosen is None else list(chosen) if isinstance(chosen, list | tuple) else [chosen]
        own = usual[0] if len(usual) == len(listed) == 1 else None
        return tuple(_build(plugins, slot, _choice(slot, own, each), names) for each in listed)
    chosen = options.get(slot, {})
    if chosen is None or (preset is None and not chosen):
        if slot != "critic":
            raise ConfigError(f"algorithm.{slot} is null", fix=f"name a part, such as {preset['name']}")
        return None
    return _build(plugins, slot, _choice(slot, preset, chosen), names)


def _preset(plugins: Plugins, name: str) -> Preset:
    if plugins.has(_PARTS, name) and not plugins.has(_PRESETS, name):
        raise ConfigError(
            f"algorithm={name!r} is a part of an algorithm, not an algorithm",
            fix="name a preset such as grpo, and the part in its slot: algorithm: {name: grpo, objective: …}",
        )
    preset = plugins.get(_PRESETS, name)
    if not isinstance(preset, Preset):
        raise PluginError(
            f"algorithm={name!r} is registered in the entry-point group agentrl.{_PRESETS} and is no "
            "agentrl.algorithms.contract.Preset",
            fix=f"register a Preset there, and a part of an algorithm in the group agentrl.{_PARTS}",
        )
    return preset


def _choice(slot: str, preset: Mapping[str, Any] | None, choice: object) -> Mapping[str, Any]:
    """The part in ``slot``: the preset's with the keys of ``choice`` over its own, or the one that ``choice`` names."""
    usual = None if preset is None else preset["name"]
    if isinstance(choice, str):
        choice = {"name": choice}
    if not isinstance(choice, Mapping) or (usual is None and "name" not in choice):
        raise ConfigError(
            f"algorithm.{slot}={choice!r} is neither a name nor keys",
            fix=f"write algorithm.{slot}: {usual or 'and a name'}, or its keys below it",
        )
    name = _qualified(slot, str(choice.get("name", usual)))
    return {**(preset if preset is not None and name == usual else {}), **choice, "name": name}


def _qualified(slot: str, name: str) -> str:
    """``clip`` in the slot ``objective`` is ``objective.clip``; references stay as they are."""
    prefix = name.partition(".")[0]
    other = next((each for each, of_each in _PREFIXES.items() if of_each == prefix and each != slot), None)
    if other is not None:
        raise ConfigError(
            f"algorithm.{slot}={name!r} is a part of another slot", fix=f"write algorithm.{other}: {name}"
        )
    return name if any(mark in name for mark in ".:/") else f"{_PREFIXES[slot]}.{name}"


def _build(plugins: Plugins, slot: str, choice: Mapping[str, Any], names: dict[int, str]) -> Any:
    try:
        part = TypeAdapter(Part).validate_python(dict(choice))
    except ValidationError as error:
        raise ConfigError(f"algorithm.{slot}={dict(choice)!r} is not a part") from error
    if plugins.has(_PRESETS, part.name) and not plugins.has(_PARTS, part.name):
        entry = plugins.find(_PRESETS, part.name)
        raise PluginError(
            f"algorithm.{slot}={part.name!r} is registered by {entry.distribution} in the entry-point group "
            f"agentrl.{_PRESETS}, which holds presets only",
            fix=f"move it to the group agentrl.{_PARTS} in that distribution's pyproject.toml, and install it again",
        )
    built = plugins.build(_PARTS, part, at=f"algorithm.{slot}")
    names[id(built)] = part.name
    return built
