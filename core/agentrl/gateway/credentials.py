"""What lets an agent into its session: a key, and a capture token in the base URL's path."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field

from agentrl.redaction import SECRET, redact, redact_log

__all__ = ["Credentials", "bearer", "new_credentials", "redact", "redact_log", "session_of"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Both secrets hold 256 random bits, and the session's public id, by which it is found."""

    session: str
    key: str = field(repr=False)
    capture: str = field(repr=False)

    def opens_with_key(self, given: str) -> bool:
        """Whether ``given`` is this session's key."""
        return hmac.compare_digest(given.encode(), self.key.encode())

    def opens_with_capture(self, given: str) -> bool:
        """Whether ``given`` is this session's capture token."""
        return hmac.compare_digest(given.encode(), self.capture.encode())


def new_credentials() -> Credentials:
    """Credentials of a new session."""
    session = secrets.token_hex(6)
    key, capture = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    return Credentials(session, f"sk-agentrl-{session}-{key}", f"capture-{session}-{capture}")


def session_of(secret: str) -> str | None:
    """The public session id in a key or capture token; ``None`` where it is neither."""
    match = SECRET.fullmatch(secret)
    return match.group(2) if match else None


def bearer(authorization: str) -> str:
    """The key in an ``Authorization`` header, whose scheme is the same in any case; the whole where it names none."""
    scheme, _, key = authorization.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else authorization.strip()
