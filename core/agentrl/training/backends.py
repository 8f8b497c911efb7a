"""Which of the two contracts a backend keeps: token ids and weights, or messages alone."""

from __future__ import annotations

from agentrl.config.models import Config
from agentrl.errors import ConfigError, PluginError
from agentrl.inference.contract import ChatBackend
from agentrl.plugins import Plugins

__all__ = ["check_is_engine", "check_takes_weights", "is_chat", "untrainable"]


def is_chat(config: Config, plugins: Plugins) -> bool:
    """Whether the backend of ``config`` is a ``ChatBackend``. Raises as ``Plugins.get`` does."""
    registered = plugins.get("backends", config.inference.backend.name)
    return isinstance(registered, type) and issubclass(registered, ChatBackend)


def check_is_engine(config: Config, backend: object) -> None:
    """Raise ``PluginError`` where what ``config`` names has made a chat backend, and is no class to be known by."""
    if isinstance(backend, ChatBackend):
        raise PluginError(
            f"inference.backend={config.inference.backend.name!r} is a function that makes a chat backend, "
            f"{type(backend).__name__}, and was taken for one that makes an inference engine",
            fix="register the class itself: which contract it keeps is read before anything is built",
        )


def check_takes_weights(config: Config, plugins: Plugins) -> None:
    """Raise ``ConfigError`` for a backend that can only be evaluated."""
    if is_chat(config, plugins):
        raise untrainable(config)


def untrainable(config: Config) -> ConfigError:
    """The error for training with the backend of ``config``."""
    return ConfigError(
        f"inference.backend={config.inference.backend.name!r} cannot be trained: it takes no weights",
        fix="use it with `agentrl eval`, or train with inference.backend=torch",
    )
