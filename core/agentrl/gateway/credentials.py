"""What lets an agent into its session: a key, and a capture token in the base URL's path."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
from dataclasses import dataclass, field

__all__ = ["Credentials", "new_credentials", "redact", "redact_log", "session_of"]

_SECRET = re.compile(r"\b(sk-agentrl|capture)-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


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
    match = _SECRET.fullmatch(secret)
    return match.group(2) if match else None


def redact(text: str) -> str:
    """``text`` with every key and capture token cut down to its session's public id."""
    return _SECRET.sub(r"\1-\2-…", text)


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record's message is redacted in place."""
        record.msg, record.args = redact(record.getMessage()), None
        return True


_REDACTION = _Redaction()


def redact_log(name: str) -> None:
    """Redact what the logger ``name`` logs; HTTP libraries log the URL of every request, token included."""
    logging.getLogger(name).addFilter(_REDACTION)
