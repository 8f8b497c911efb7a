"""Keeping the secrets of sessions out of logs and messages."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["SECRET", "redact", "redact_config", "redact_every_log", "redact_log"]

SECRET = re.compile(r"\b(sk-agentrl|capture)-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
"""An API key or a capture token of a session; the second group is the session's public id."""


def redact(text: str) -> str:
    """``text`` with every key and capture token cut down to its session's public id."""
    return SECRET.sub(r"\1-\2-…", text)


_SECRET_KEY = re.compile(
    r"(?i)(^|_|-)((api|access|secret|private)[_-]?key|secret|password|passwd|credentials?)$"
    r"|^((api|auth|access|bearer|hf)[_-]?)?token$"
)
_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+@")


def redact_config(value: Any) -> Any:
    """A config as plain JSON without what leaves no machine: texts at keys that name a secret, passwords in URLs.

    The values that ``agent.env`` gives to variables are left out whatever they are called: ``NAME=…``.
    """
    if isinstance(value, Mapping):
        return {key: _redacted(key, held) for key, held in value.items()}
    if isinstance(value, list):
        return [redact_config(each) for each in value]
    return _URL_PASSWORD.sub(r"\1:…@", value) if isinstance(value, str) else value


def _redacted(key: str, value: Any) -> Any:
    if isinstance(value, str) and value and _SECRET_KEY.search(key):
        return "…"
    if key == "env" and isinstance(value, list):
        return [re.sub(r"(?s)=.*", "=…", each) if isinstance(each, str) else redact_config(each) for each in value]
    return redact_config(value)


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record's message is redacted in place."""
        record.msg, record.args = redact(record.getMessage()), None
        return True


_REDACTION = _Redaction()


def redact_log(name: str) -> None:
    """Redact what the logger ``name`` logs; HTTP libraries log the URL of every request, token included."""
    logging.getLogger(name).addFilter(_REDACTION)


def redact_every_log() -> None:
    """Redact what any logger of this process logs, exceptions included, whoever handles it and how."""
    make = logging.getLogRecordFactory()

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(Exception):  # A message that does not fit its arguments is the handler's to report.
            _redact_record(record)
        return record

    logging.setLogRecordFactory(redacted)


def _redact_record(record: logging.LogRecord) -> None:
    if SECRET.search(message := record.getMessage()):
        record.msg, record.args = redact(message), None
    if record.exc_info and record.exc_info[0]:
        record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
