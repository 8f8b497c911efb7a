"""Endpoints: what a configuration says of one, the key that it is asked with, and the SDK's client of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from agentrl.clients import client_library
from agentrl.config.section import Section
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["CONNECT_S", "Endpoint", "OpenAISettings", "base_url", "key_variable", "make_client", "variable_name"]

CONNECT_S = 10.0
"""Seconds within which a connection must be made."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPENAI = "api.openai.com"
_OPENAI_KEY = "OPENAI_API_KEY"
_ROUTE = "/chat/completions"
_NO_KEY = "none"
"""Sent to an endpoint that asks for no key, because the SDK insists on one."""
_HEADERS_OF_ANY_REQUEST = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
    }
)


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
        """Whether the endpoint is OpenAI's own; headers that are meant for OpenAI go to no other."""
        return _is_openai(self.url)

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key; ``None`` where no key is sent."""
        return key_variable(self.url, self.api_key_env, is_said="api_key_env" in self.model_fields_set)

    @field_validator("url")
    @classmethod
    def _base_url(cls, url: str) -> str:
        return base_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        return variable_name(name)


def base_url(url: str) -> str:
    """``url`` without a slash at its end. Raises ``ValueError`` where it is no base URL of an endpoint."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("should be a URL such as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("should hold no user, password or query: the key goes into api_key_env's variable")
    if parts.path.rstrip("/").endswith(_ROUTE):
        raise ValueError(f"should end before {_ROUTE}, which is added to it")
    return url.rstrip("/")


def variable_name(name: str | None) -> str | None:
    """``name``, which may be the name of an environment variable. Raises ``ValueError`` where it cannot."""
    # The error does not repeat the value, because some write the key itself there.
    if name is not None and not _VARIABLE.fullmatch(name):
        raise ValueError("should be the name of an environment variable, not a key")
    return name


def key_variable(url: str, name: str | None, *, is_said: bool) -> str | None:
    """The environment variable that holds the key of the endpoint ``url``; ``None`` where no key is sent.

    ``name`` is what the configuration names, if ``is_said``; without it OpenAI's own endpoint has OpenAI's variable.
    """
    return _OPENAI_KEY if _is_openai(url) and not is_said else name


def _is_openai(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == _OPENAI or host.endswith(f".{_OPENAI}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model at an endpoint."""

    url: str
    """The base URL, without a slash at its end."""
    model: str
    """The endpoint's name of the model."""
    variable: str | None
    """The environment variable that holds the key; ``None`` where none is needed."""
    is_openai: bool
    """Whether it is OpenAI's own."""
    key: str = field(repr=False)

    @classmethod
    def of(cls, settings: OpenAISettings, model: str, environ: Mapping[str, str]) -> Endpoint:
        """Returns ``model`` at the endpoint of ``settings``. Raises ``ConfigError`` where ``environ`` lacks the key."""
        name = settings.key_variable
        key = _NO_KEY if name is None else environ.get(name, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {name}, which inference.backend.api_key_env names, is not set",
                fix=f"set it to the key of {settings.url}, or inference.backend.api_key_env=null where that needs none",
            )
        return cls(settings.url, model, name, settings.is_openai, key)

    def without_key(self, text: str) -> str:
        """Returns ``text`` with ``…`` in place of the key, which some endpoints repeat in their answers."""
        return text if self.variable is None else text.replace(self.key, "…")


def make_client(endpoint: Endpoint, timeout: float, sent: Callable[[], None] = lambda: None) -> AsyncOpenAI:
    """Returns a client whose calls may take ``timeout`` seconds. Call it in the event loop that uses the client.

    ``sent`` is called, in the task that makes the call, for each request, those that the SDK tries again included. An
    endpoint other than OpenAI's own is sent no header that the SDK takes from environment variables for OpenAI.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    library = client_library()
    limit = library.Timeout(timeout, connect=CONNECT_S)
    # `rollout.concurrency` is the limit: a smaller pool would be a second one, that nobody has set.
    limits = library.Limits(max_connections=None, max_keepalive_connections=None)

    async def count(request: Any) -> None:
        if request.method == "POST":  # The list of models costs nothing.
            sent()

    hooks = {"request": [count, *([] if endpoint.is_openai else [_remove_openai_headers])]}
    return AsyncOpenAI(
        base_url=endpoint.url,
        api_key=endpoint.key,
        default_headers={"Authorization": f"Bearer {endpoint.key}"},
        http_client=DefaultAsyncHttpxClient(timeout=limit, limits=limits, event_hooks=hooks),
        timeout=limit,
    )


async def _remove_openai_headers(request: Any) -> None:
    """The SDK adds headers from its environment variables: OpenAI's organisation and project, and custom ones."""
    for name in list(request.headers):
        if name not in _HEADERS_OF_ANY_REQUEST and not name.startswith("x-stainless-"):
            del request.headers[name]
