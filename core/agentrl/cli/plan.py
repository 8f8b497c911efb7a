"""What ``--dry-run`` prints: every setting, and where it came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agentrl.cli.output import print_columns

if TYPE_CHECKING:
    from agentrl.config.loader import Resolved

__all__ = ["print_plan"]


def print_plan(resolved: Resolved) -> None:
    """One line a key: its value, and its place."""
    values = resolved.config.model_dump(mode="json")
    print_columns([(key, _shown(_at(values, key)), place) for key, place in resolved.provenance.items()])


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
