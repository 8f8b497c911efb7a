"""The arguments that `train` and `eval` share: one name or path, and any number of KEY=VALUE settings."""

from __future__ import annotations

from agentrl.errors import ConfigError

__all__ = ["split_arguments"]


def split_arguments(arguments: tuple[str, ...], what: str) -> tuple[str | None, tuple[str, ...]]:
    """The one argument that is no setting, if there is one, and the settings.

    Raises ``ConfigError`` where there are two; ``what`` says what the one would be.
    """
    names = [argument for argument in arguments if "=" not in argument]
    if len(names) > 1:
        raise ConfigError(
            f"{names[1]!r} is one {what} too many beside {names[0]!r}", fix="settings are written KEY=VALUE"
        )
    return next(iter(names), None), tuple(argument for argument in arguments if "=" in argument)
