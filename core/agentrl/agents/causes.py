"""Which failures have one cause: what an exception says, without what differs from one episode to the next."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from agentrl.agents.places import authors_place
from agentrl.errors import AgentRLError, GatewayError, one_line
from agentrl.redaction import redact

__all__ = ["cause_of", "without_details"]

_DETAILS = re.compile(
    r"""
    \b[a-z][a-z+.-]*://\S+              # an address
    | (?<!\w)'(?:\\.|[^'\\])*'(?!\w)    # a quoted text, but no apostrophe
    | "(?:\\.|[^"\\])*"
    | [\w.+-]*\d[\w.+-]*                # a number, an id, a date
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ELIDED = "…"
_LOOKED_AT = 1000
"""Characters: a message may be of any length, and looking takes its square."""
_CHARACTERS = 300
_AUTHORS = frozenset({"agent", "policy", "reward"})
_UNNAMED = "invalid_request_error"


def cause_of(error: BaseException) -> str:
    """What ``error`` shares with others of its cause; equal texts are one cause.

    Our own errors name it, or are told by their message without its details. Anything else is told by its type and
    by where it was raised: what an author puts into a message can be any text. An ``AgentRLError`` that an author
    raises is told by its place as well, but where it passes on what another exception said.
    """
    stack = traceback.extract_tb(error.__traceback__)
    place = authors_place(stack)
    if isinstance(error, AgentRLError):
        if named := getattr(error, "cause", None):
            return str(named)
        if isinstance(error, GatewayError) and error.code != _UNNAMED:
            return " ".join(filter(None, (error.code, error.param)))
        if not place or error.side not in _AUTHORS or error.__cause__ is not None:
            return without_details(str(getattr(error, "message", error)))
    name = type(error).__name__
    if not place:
        return f"{name}: {without_details(_text(error))}"
    innermost = stack[-1]
    inside = f"{innermost.filename}:{innermost.lineno}"
    through = "" if inside in place else f", through {Path(innermost.filename).name}:{innermost.lineno}"
    return redact(f"{name}{place}{through}")


def without_details(text: str) -> str:
    """``text`` with addresses, quoted texts, and words that hold a digit left out."""
    return _DETAILS.sub(_ELIDED, redact(one_line(text[:_LOOKED_AT])))[:_CHARACTERS]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"its text cannot be had, {type(second).__name__}"
