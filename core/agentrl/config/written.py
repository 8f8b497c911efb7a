"""A value that YAML reads as a number, a boolean or null, with the text that it was written as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Written", "plain"]


class Written:
    """What `1000` or `null` may mean is known once the key is: see ``agentrl.config.fitting``.

    Equal to what its value is equal to.
    """

    # No dataclass, which pydantic would take apart.
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
    """``value`` as YAML reads it where nobody asks for text."""
    if isinstance(value, Written):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(held) for key, held in value.items()}
    return [plain(held) for held in value] if isinstance(value, list) else value
