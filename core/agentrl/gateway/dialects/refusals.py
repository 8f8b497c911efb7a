"""How dialects refuse: errors that name the field, its value and the fix, and the checks that raise them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from agentrl.errors import GatewayError, shortened, shown
from agentrl.gateway.dialects.overrides import misspelled

__all__ = ["flag", "text", "unknown", "unsupported", "whole", "wrong"]


def wrong(where: str, what: str, *, fix: str | None = None, code: str = "invalid_value") -> GatewayError:
    """The error (400) for a part of a request that is not as its protocol wants it; ``where`` is its path."""
    return GatewayError(f"{where} {what}", param=where, code=code, fix=fix)


def unsupported(name: str, value: object, what: str, *, fix: str | None = None) -> GatewayError:
    """The error (400) for a field whose value cannot be honoured."""
    return GatewayError(f"{name}={shown(value, 80)} {what}", param=name, code="unsupported_value", fix=fix)


def unknown(name: str, value: object, known: Set[str]) -> GatewayError:
    """The error (400) for a field that is none of ``known``."""
    near = misspelled(name, known)
    return GatewayError(
        f"{shortened(name, 80)}={shown(value, 80)} is not a field that can be honoured here",
        param=name,
        code="unknown_parameter",
        fix=f"did you mean {near!r}?" if near else f"drop it, or set rollout.override: {{{name}: null}}",
    )


def flag(given: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false, and false where it is absent or null. Raises ``GatewayError`` (400)."""
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise unsupported(name, value, "is neither true nor false")
    return bool(value)


def text(given: Mapping[str, Any], name: str, where: str) -> str | None:
    """The text under ``name``, if any, of an object that is at ``where``. Raises ``GatewayError`` (400)."""
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise wrong(f"{where}.{name}" if where else name, f"is not a text: {shown(value, 80)}")
    return value


def whole(given: Mapping[str, Any], name: str, least: int, most: int, default: int, *, fix: str | None = None) -> int:
    """A field that is a whole number from ``least`` to ``most``. Raises ``GatewayError`` (400)."""
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise unsupported(name, value, f"is not a whole number from {least} to {most}", fix=fix)
    return value
