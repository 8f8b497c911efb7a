"""An endpoint that stays the same while the episodes behind it change."""

from __future__ import annotations

from collections.abc import Callable

from agentrl.errors import ConfigError, GatewayError
from agentrl.gateway.credentials import Credentials, session_of

__all__ = ["StandingEndpoint"]


class StandingEndpoint:
    """A base URL and a key for one process that runs agents, valid until it is closed.

    A client that an agent makes when its module is imported is older than every episode: its calls belong to the
    episode that the process runs at that moment. Use it from any thread.
    """

    def __init__(self, credentials: Credentials, base_url: str, on_close: Callable[[StandingEndpoint], None]) -> None:
        self.id = credentials.session
        self.credentials = credentials
        self.base_url = base_url
        self.api_key = credentials.key
        self._on_close = on_close
        self._attached: tuple[str, ...] = ()

    def attach(self, session_api_key: str) -> None:
        """The process begins the episode whose session has this key."""
        self._attached = (*self._attached, _session(session_api_key))

    def detach(self, session_api_key: str) -> None:
        """The process has ended that episode. Safe to call twice."""
        ended = _session(session_api_key)
        self._attached = tuple(session for session in self._attached if session != ended)

    def close(self) -> None:
        """Calls are refused from now on. Safe to call twice."""
        self._on_close(self)

    def session(self) -> str:
        """The id of the one session attached. Raises ``GatewayError`` where there is none, or more than one."""
        attached = self._attached
        if not attached:
            raise GatewayError(
                "no episode runs in the process that made this call",
                status=404,
                code="no_episode",
                fix="call the model inside run()",
            )
        if len(attached) > 1:
            raise GatewayError(
                f"{len(attached)} episodes run in this process, and an older client cannot tell them apart",
                status=409,
                code="ambiguous_episode",
                fix="make the client inside run(), or set rollout.episodes_per_worker=1",
            )
        return attached[0]


def _session(key: str) -> str:
    session = session_of(key)
    if session is None:
        raise ConfigError("what was attached is no key of a session", fix="pass the api_key that open_session gave")
    return session
