"""Algorithms by name, and how the ``algorithm`` section of a configuration becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from agentrl.algorithms.contract import Algorithm, Preset
from agentrl.config.models import Part
from agentrl.errors import ConfigError, PluginError, near_matches

if TYPE_CHECKING:
    from agentrl.plugins import Plugins

__all__ = ["build_algorithm", "grpo", "ppo"]

grpo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.group"},
    filter={"name": "filter.none"},
    normalisation={"name": "normalisation.sequence"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
)
"""Group relative policy optimisation (Shao et al. 2024, eq. 3), without the KL term to a reference model.

The KL term holds a policy near its start; with verifiable rewards it costs a second model in memory and slows
learning down, and current practice leaves it out (Yu et al. 2025, section 2.3; Liu et al. 2025).
"""

ppo = Preset(
    credit={"name": "credit.tree"},
    advantage={"name": "advantage.gae"},
    normalisation={"name": "normalisation.token"},
    correction={"name": "correction.ratio"},
    objective={"name": "objective.clip"},
    critic={"name": "critic.clip"},
)
"""Proximal policy optimisation (Schulman et al. 2017) with a value head on the policy's own hidden states."""

_PRESETS, _PARTS = "algorithms", "parts"
_SLOTS = tuple(field.name for field in fields(Preset))
_SERIES = ("shaping", "penalties")
"""Slots that hold any number of parts, in order."""
_PREFIXES = {slot: {"penalties": "penalty"}.get(slot, slot) for slot in _SLOTS}
"""What the names of the parts of a slot begin with."""


def build_algorithm(plugins: Plugins, part: Part) -> Algorithm:
    """Build the algorithm that ``part``, the configuration's ``algorithm`` section, describes.

    Its name is that of a ``Preset``. A slot is overridden by a name, with or without the slot's prefix
    (``objective: clip``), by keys of the preset's own part (``objective: {clip_high: 0.28}``), or by both; ``shaping``
    and ``penalties`` by a list of such, and ``critic`` by null as well. Raises ``ConfigError`` for a name, a slot or a
    key that does not exist, or a key that could have no effect, and ``PluginError`` for an entry that is registered in
    the wrong group.
    """
    preset = _preset(plugins, part.name)
    for key in part.options:
        if key not in _SLOTS:
            raise ConfigError(f"algorithm.{key} does not exist", fix=near_matches(key, _SLOTS))
    parts = {slot: _fill(plugins, slot, getattr(preset, slot), part.options) for slot in _SLOTS}
    for slot, built in parts.items():
        for each in built if slot in _SERIES else (built,):
            _refuse_without_effect(part.options, slot, each)
    return Algorithm(name=part.name, **parts)


def _fill(plugins: Plugins, slot: str, preset: Any, options: Mapping[str, Any]) -> Any:
    """What is in ``slot``: a part, ``None``, or a tuple of parts."""
    if slot in _SERIES:
        chosen = options.get(slot, preset)
        listed = [] if chosen is None else [chosen] if isinstance(chosen, str | Mapping) else chosen
        return tuple(_build(plugins, slot, _choice(slot, None, each)) for each in listed)
    chosen = options.get(slot, {})
    if chosen is None or (preset is None and not chosen):
        if slot != "critic":
            raise ConfigError(f"algorithm.{slot} is null", fix=f"name a part, such as {preset['name']}")
        return None
    return _build(plugins, slot, _choice(slot, preset, chosen))


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


def _build(plugins: Plugins, slot: str, choice: Mapping[str, Any]) -> Any:
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
    return plugins.build(_PARTS, part, at=f"algorithm.{slot}")


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
