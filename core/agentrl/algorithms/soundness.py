"""Which parts make sense together, and which keys have an effect beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentrl.algorithms.contract import Algorithm
from agentrl.errors import ConfigError

__all__ = ["check_algorithm", "check_command", "check_groups"]

_CRITIC_COLUMN = "value"


def check_algorithm(algorithm: Algorithm, options: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Raise ``ConfigError`` where parts of ``algorithm`` contradict each other, or a key of ``options`` has no effect.

    ``options`` is what the configuration says beside the name of the algorithm, and ``names`` what it calls each part,
    by the part's ``id``. What a part objects to it says itself; see ``agentrl.algorithms.contract``.
    """
    for slot, part in _parts(algorithm):
        _refuse_without_effect(options, slot, getattr(part, "LEAVES_WITHOUT_EFFECT", {}))
        if algorithm.updates == 1:
            _refuse_without_effect(options, slot, getattr(part, "WITH_ONE_UPDATE_LEAVES_WITHOUT_EFFECT", {}))
        objection = getattr(part, "objection", None)
        if objection is not None and (found := objection(algorithm)) is not None:
            name = names.get(id(part), type(part).__name__)
            raise ConfigError(f"algorithm.{slot}={name} makes no sense here: {found.reason}", fix=found.fix)
    _check_critic(algorithm)


def check_command(algorithm: Algorithm, command: str, kind: str | None = None) -> None:
    """Raise ``ConfigError`` where ``command`` of ``agentrl`` does not train with ``algorithm``.

    ``kind`` is the command whose algorithms it trains with, by default its own.
    """
    if algorithm.command != (kind or command):
        raise ConfigError(
            f"algorithm={algorithm.name!r} is not for agentrl {command}: it learns from no reward of an agent",
            fix=f"train with it by agentrl {algorithm.command}, or name another, such as algorithm=grpo",
        )


def check_groups(algorithm: Algorithm, size: int) -> None:
    """Raise ``ConfigError`` where ``algorithm`` compares the episodes of a group, and groups of ``size`` have one."""
    if size == 1 and getattr(algorithm.advantage, "needs_group", False):
        raise ConfigError(
            f"rollout.group_size=1 leaves algorithm={algorithm.name!r} nothing to learn from: its advantage compares "
            "the episodes of a group with each other",
            fix="raise rollout.group_size, or set algorithm=reinforce++, which compares all episodes of a step",
            key="rollout.group_size",
        )


def _parts(algorithm: Algorithm) -> Iterator[tuple[str, object]]:
    """Every part with its slot."""
    for slot in ("shaping", "filter", "penalties"):
        yield from ((slot, part) for part in getattr(algorithm, slot))
    for slot in ("credit", "advantage", "normalisation", "correction", "objective", "critic"):
        if (part := getattr(algorithm, slot)) is not None:
            yield slot, part


def _check_critic(algorithm: Algorithm) -> None:
    """A value head is trained exactly where an advantage asks it."""
    asked = _CRITIC_COLUMN in algorithm.columns
    if algorithm.critic is not None and not asked:
        raise ConfigError(
            "algorithm.critic trains a value head that this algorithm.advantage never asks",
            fix="leave algorithm.critic out, or set algorithm.advantage=gae",
        )
    if asked and algorithm.critic is None:
        raise ConfigError(
            "this algorithm.advantage asks a value head, and without algorithm.critic there is none",
            fix="set algorithm.critic=clip, or another algorithm.advantage such as group",
        )


def _refuse_without_effect(options: Mapping[str, Any], slot: str, without: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ``ConfigError`` for a key of another slot that is meaningless beside a part in ``slot``."""
    for other, keys in without.items():
        given = options.get(other)
        for key in keys:
            if isinstance(given, Mapping) and key in given:
                raise ConfigError(
                    f"algorithm.{other}.{key} has no effect beside this algorithm.{slot}",
                    fix=f"leave it out, or choose another algorithm.{slot}",
                )
