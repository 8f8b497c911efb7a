"""What an exception says about the agent that raised it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import agentrl
from agentrl.agents.places import authors_place
from agentrl.errors import encodable, one_line
from agentrl.redaction import redact

__all__ = ["authors_traceback", "describe", "is_api_error", "is_breakage"]

_CHARACTERS = 400
_TRACEBACK_CHARACTERS = 20_000
_CORE = Path(agentrl.__file__).parent
_FOR_NOW = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


def describe(error: BaseException) -> str:
    """``error`` on one line, with the place in the author's code where it was raised, and without secrets."""
    place = authors_place(traceback.extract_tb(error.__traceback__))
    return redact(one_line(f"{type(error).__name__}: {_text(error)}{place}"))[:_CHARACTERS]


def authors_traceback(error: BaseException) -> str:
    """The traceback without the frames that lead to the agent's code, and without secrets; empty of what was never
    raised."""
    trace = error.__traceback__
    if trace is None and not getattr(error, "__notes__", ()):
        return ""
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_CORE):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    return redact(encodable(text))[-_TRACEBACK_CHARACTERS:]


def is_api_error(error: BaseException) -> bool:
    """Whether a chain of exceptions holds one of an HTTP client, whichever library it comes from."""
    return any(hasattr(each, "status_code") or hasattr(each, "request") for each in _chain(error))


def is_breakage(error: BaseException) -> bool:
    """Whether a chain of exceptions holds an HTTP client's that blames the other end: no answer, or one to say so."""
    return any(_blames_the_other_end(each) for each in _chain(error))


def _blames_the_other_end(error: BaseException) -> bool:
    status = getattr(error, "status_code", getattr(getattr(error, "response", None), "status_code", None))
    if isinstance(status, int):
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _FOR_NOW
    return hasattr(error, "request")


def _chain(error: BaseException) -> Iterator[BaseException]:
    chain: list[BaseException] = []  # Which may be a ring: `raise error from error` makes one.
    seen: BaseException | None = error
    while seen is not None and not any(seen is other for other in chain):
        yield seen
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"its text cannot be had, {type(second).__name__}"
