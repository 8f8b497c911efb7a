"""Which endpoint it is, and the key that it is asked with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentrl.errors import ConfigError
from agentrl.inference.openai.settings import OpenAISettings

__all__ = ["Endpoint"]

_NO_KEY = "none"
"""What the SDK sends to an endpoint that asks for no key: it insists on one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model at an endpoint."""

    url: str
    model: str
    variable: str | None
    """The environment variable of the key; ``None`` where none is needed."""
    is_openai: bool
    """Whether it is OpenAI's own."""
    key: str = field(repr=False)

    @classmethod
    def of(cls, settings: OpenAISettings, model: str, environ: Mapping[str, str]) -> Endpoint:
        """``model`` at the endpoint of ``settings``. Raises ``ConfigError`` where ``environ`` lacks the key."""
        name = settings.key_variable
        key = _NO_KEY if name is None else environ.get(name, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {name}, which inference.backend.api_key_env names, is not set",
                fix=f"set it to the key of {settings.url}, or inference.backend.api_key_env=null where that needs none",
            )
        return cls(settings.url, model, name, settings.is_openai, key)

    def without_key(self, text: str) -> str:
        """``text`` without the key, which some endpoints repeat in what they answer."""
        return text if self.variable is None else text.replace(self.key, "…")
