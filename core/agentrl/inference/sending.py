"""Sending weights from where they are: the function that does it is named, since it may run in another process."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.inference.contract import Weights

__all__ = ["call_with"]


def call_with(weights: Weights, target: str, arguments: Mapping[str, Any]) -> Any:
    """Call the function ``package.module:function`` in this process with ``weights`` and ``arguments``.

    Returns what it returns. Raises what it raises, and what importing it raises.
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(weights, **arguments)
