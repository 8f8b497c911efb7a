"""Keeping the secrets of sessions out of logs and messages."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import Any

__all__ = ["SECRET", "redact", "redact_every_log", "redact_log"]

SECRET = re.compile(r"\b(sk-agentrl|capture)-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
"""An API key or a capture token of a session; the second group is the session's public id."""


def redact(text: str) -> str:
    """``text`` with every key and capture token cut down to its session's public id."""
    return SECRET.sub(r"\1-\2-…", text)


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
