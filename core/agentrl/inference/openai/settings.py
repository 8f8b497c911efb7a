"""What a configuration may set about an endpoint."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from agentrl.config.models import Section

__all__ = ["OpenAISettings"]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPENAI = "api.openai.com"
_OPENAI_KEY = "OPENAI_API_KEY"
_ROUTE = "/chat/completions"


class OpenAISettings(Section):
    """The keys beside ``inference.backend.name: openai``."""

    url: str = "https://api.openai.com/v1"
    """Base URL of the endpoint, up to what comes before `/chat/completions`."""
    model: str | None = None
    """The endpoint's name of the model; by default `model.name`, which it replaces."""
    api_key_env: str | None = None
    """The environment variable that holds the endpoint's key; null for an endpoint that asks for none. By default
    `OPENAI_API_KEY` for OpenAI's own endpoint, and null for any other."""
    max_retries: int = Field(5, ge=0)
    """How often a call is tried again after 408, 409, 429, a 5xx or a broken connection, with growing pauses; the
    agent's own client does not try it again."""

    @property
    def is_openai(self) -> bool:
        """Whether the endpoint is OpenAI's own: what is meant for that one is sent to no other."""
        host = urlsplit(self.url).hostname or ""
        return host == _OPENAI or host.endswith(f".{_OPENAI}")

    @property
    def key_variable(self) -> str | None:
        """The environment variable of the key; ``None`` where none is sent."""
        is_said = "api_key_env" in self.model_fields_set
        return _OPENAI_KEY if self.is_openai and not is_said else self.api_key_env

    @field_validator("url")
    @classmethod
    def _base_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("should be a URL such as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("should hold no user, password or query: the key goes into api_key_env's variable")
        if parts.path.rstrip("/").endswith(_ROUTE):
            raise ValueError(f"should end before {_ROUTE}, which is added to it")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        """Whoever writes the key itself there does not find it in the error."""
        if name is not None and not _VARIABLE.fullmatch(name):
            raise ValueError("should be the name of an environment variable, not a key")
        return name
