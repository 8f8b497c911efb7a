"""What an exception says about the code that raised it: where, why, and which other exceptions have the same origin."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from traceback import FrameSummary

import agentrl
from agentrl.errors import AgentRLError, GatewayError, encodable, one_line
from agentrl.redaction import redact

__all__ = [
    "authors_traceback",
    "code_location",
    "describe",
    "fingerprint_of",
    "is_api_error",
    "is_breakage",
    "is_cut_off",
    "texts_of",
    "without_details",
]

_CORE = Path(agentrl.__file__).parent
_OURS = str(_CORE.resolve())
_STDLIB = str(Path(sysconfig.get_path("stdlib")).resolve())
_INSTALLED = str(Path(sysconfig.get_path("purelib")).resolve())

_DESCRIPTION_CHARACTERS = 400
_TRACEBACK_CHARACTERS = 20_000
_FINGERPRINT_CHARACTERS = 300
_LOOKED_AT = 1000
"""Characters of a message that are searched for details; the search takes time quadratic in this number."""

_TEMPORARY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_AUTHORS = frozenset({"agent", "policy", "reward"})
_UNNAMED = "invalid_request_error"
_UNTRUSTED, _MISNAMED = "CERTIFICATE_VERIFY_FAILED", "certificate is not valid for"
_ON_TRUST = "; SSL_CERT_FILE, in agent.env for agents in workers, names the certificates that are trusted"
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


def code_location(stack: Sequence[FrameSummary]) -> str:
    """The innermost frame that the agent's author wrote, as `` at FILE:LINE, in FUNCTION``; empty where there is none.

    ``stack`` lists the innermost frame last, as ``traceback.extract_tb`` does.
    """
    frames = [frame for frame in reversed(stack) if not frame.filename.startswith("<")]
    # An installed agent lies among the libraries that it calls, so theirs are the second choice.
    for libraries in ((_OURS, _STDLIB, _INSTALLED), (_OURS, _STDLIB)):
        for frame in frames:
            if not str(Path(frame.filename).resolve()).startswith(libraries):
                return f" at {frame.filename}:{frame.lineno}, in {frame.name}"
    return ""


def describe(error: BaseException) -> str:
    """``error`` as one line of at most 400 characters: its type, its text and where the author's code raised it.

    Where a connection failed, the text is followed by why. Secrets of the gateway are redacted.
    """
    location = code_location(traceback.extract_tb(error.__traceback__))
    text = f"{_text(error)}{_why_unconnected(error)}"
    return redact(one_line(f"{type(error).__name__}: {text}{location}"))[:_DESCRIPTION_CHARACTERS]


def authors_traceback(error: BaseException) -> str:
    """The formatted traceback of ``error`` from the agent's code on, with secrets redacted.

    The frames of agentrl that lead to the agent's code are left out. Empty for an exception that was never raised.
    """
    trace = error.__traceback__
    if trace is None and not getattr(error, "__notes__", ()):
        return ""
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_CORE):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    return redact(encodable(text))[-_TRACEBACK_CHARACTERS:]


def is_api_error(error: BaseException) -> bool:
    """Whether ``error`` or one that it was raised from comes from an HTTP client, whichever library that is.

    A group of exceptions, such as a task group raises, does if all of its exceptions do.
    """
    return any(_of_a_client(each) for each in _chain(error))


def is_cut_off(error: BaseException) -> bool:
    """Whether ``error`` or one that it was raised from complains of a completion that ended at its limit of tokens.

    SDKs raise such an error where they were to parse the completion; it holds the ``completion``.
    """
    return any(_holds_cut_completion(each) for each in _chain(error))


def texts_of(error: BaseException) -> str:
    """The texts of ``error`` and of all that it was raised from, those within groups included."""
    members = (error.exceptions if isinstance(error, BaseExceptionGroup) else () for error in _chain(error))
    return "\n".join([*map(_text, _chain(error)), *(texts_of(each) for group in members for each in group)])


def is_breakage(error: BaseException) -> bool:
    """Whether ``error`` or one that it was raised from is an HTTP client's that blames the server.

    That is one without a response, or with a status of 408, 429 or 500 and above.
    """
    return any(_blames_the_server(each) for each in _chain(error))


def fingerprint_of(error: BaseException) -> str:
    """A text that ``error`` shares with exceptions of the same origin, and with no others; failures are counted by it.

    An ``AgentRLError`` has a fingerprint of its own, or its message without details is one. Any other exception is
    identified by its type and by where it was raised, because its message may hold any text. An ``AgentRLError`` that
    an author's code raises is identified by its location as well, unless it passes on another exception's message.
    """
    stack = traceback.extract_tb(error.__traceback__)
    location = code_location(stack)
    if isinstance(error, AgentRLError):
        if own := getattr(error, "fingerprint", None):
            return str(own)
        if isinstance(error, GatewayError) and error.code != _UNNAMED:
            return " ".join(filter(None, (error.code, error.param)))
        if not location or error.side not in _AUTHORS or error.__cause__ is not None:
            return without_details(str(getattr(error, "message", error)))
    name = type(error).__name__
    if not location:
        return f"{name}: {without_details(_text(error))}"
    innermost = stack[-1]
    inside = f"{innermost.filename}:{innermost.lineno}"
    through = "" if inside in location else f", through {Path(innermost.filename).name}:{innermost.lineno}"
    return redact(f"{name}{location}{through}")


def without_details(text: str) -> str:
    """``text`` with addresses, quoted texts and words that hold a digit replaced by an ellipsis."""
    return _DETAILS.sub(_ELIDED, redact(one_line(text[:_LOOKED_AT])))[:_FINGERPRINT_CHARACTERS]


def _of_a_client(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_api_error, error.exceptions))
    return _has(error, "status_code") or _has(error, "request")


def _holds_cut_completion(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_cut_off, error.exceptions))
    choices = getattr(getattr(error, "completion", None), "choices", None)
    return isinstance(choices, list) and any(getattr(each, "finish_reason", None) == "length" for each in choices)


def _why_unconnected(error: BaseException) -> str:
    """Why an HTTP client could not connect, to end a text with: SDKs leave it to what they raise their error from."""
    chain = list(_chain(error))
    client = next((number for number, each in enumerate(chain) if _is_unanswered(each)), len(chain))
    causes = [text for each in chain[client + 1 :] if (text := _text(each))]
    why = f" ({causes[0]})" if causes and causes[0] not in _text(error) else ""
    said = " ".join([_text(error), *causes])
    return f"{why}{_ON_TRUST}" if _UNTRUSTED in said and _MISNAMED not in said else why


def _is_unanswered(error: BaseException) -> bool:
    """Whether it is of an HTTP client that has had no response."""
    return _has(error, "request") and not _has(error, "status_code") and getattr(error, "response", None) is None


def _blames_the_server(error: BaseException) -> bool:
    status = getattr(error, "status_code", getattr(getattr(error, "response", None), "status_code", None))
    if isinstance(status, int):
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TEMPORARY
    return _has(error, "request")


def _has(error: BaseException, name: str) -> bool:
    """Whether ``error`` has such an attribute, also where reading it fails: httpx's ``request`` may not be set."""
    return hasattr(type(error), name) or name in vars(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    chain: list[BaseException] = []  # It may be a ring: `raise error from error` makes one.
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
