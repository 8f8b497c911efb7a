"""A model's renderers under different variables of its chat template, such as ``enable_thinking``."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from agentrl.errors import GatewayError

if TYPE_CHECKING:
    from agentrl.tokens.renderer import Renderer

__all__ = ["Variants"]

_MOST_VARIANTS = 32
_NO_EFFORT = ("none", "minimal")


class Variants:
    """A model's renderers under different variables of its chat template. Safe to use from any thread."""

    def __init__(self, origin: str, reads: frozenset[str]) -> None:
        """``reads`` are the names of the variables that the template reads."""
        self.reads = reads
        self.make: Callable[[Mapping[str, Any]], Renderer] | None = None
        """Makes the renderer under some variables; set once the renderer without any is there."""
        self._origin = origin
        self._made: dict[str, Renderer] = {}
        self._lock = threading.Lock()

    def known(self, variables: Mapping[str, Any]) -> bool:
        """Return whether the renderer under ``variables`` is there already."""
        return _written(variables) in self._made

    def get(self, variables: Mapping[str, Any]) -> Renderer:
        """Return the renderer under ``variables``. Raises ``GatewayError`` (400) for one that the template ignores."""
        key = _written(variables)
        if (made := self._made.get(key)) is not None:  # Without the lock: nobody waits for one that is being made.
            return made
        self._check(variables)
        with self._lock:
            if key not in self._made:
                assert self.make is not None
                self._made = {**dict(list(self._made.items())[1 - _MOST_VARIANTS :]), key: self.make(variables)}
            return self._made[key]

    def resolve(
        self, variables: Mapping[str, Any], preferences: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the variables for the template, and the names of the ``preferences`` that it has no use for.

        ``variables`` win over ``preferences`` of the same name.
        """
        resolved, unmet = dict(preferences), []
        for name, value in preferences.items():
            if name in self.reads:
                continue
            del resolved[name]
            if name == "reasoning_effort" and "enable_thinking" in self.reads and value in _NO_EFFORT:
                resolved["enable_thinking"] = False
            else:
                unmet.append(name)
        return {**resolved, **variables}, tuple(unmet)

    def _check(self, variables: Mapping[str, Any]) -> None:
        for name in variables:
            if name not in self.reads:
                read = f"it reads {', '.join(sorted(self.reads))}" if self.reads else "it reads none"
                raise GatewayError(
                    f"chat_template_kwargs.{name}: the chat template of {self._origin} does not read {name!r}",
                    param=f"chat_template_kwargs.{name}",
                    code="unsupported_value",
                    fix=f"{read}; or set rollout.override: {{chat_template_kwargs: null}}",
                )


def _written(variables: Mapping[str, Any]) -> str:
    return json.dumps(variables, sort_keys=True)
