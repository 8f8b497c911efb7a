"""What the rollout and a worker say to each other: one JSON object a line, over a socket pair.

The worker is started as ``python -m agentrl.worker --fd N``, the leader of a session, with its end of the pair as
descriptor ``N``; its standard output and error are the agent's, never the protocol's. The rollout speaks first::

    rollout → worker                              worker → rollout
    hello   protocol, core                        hello    protocol, core, python
    load    agent, kwargs, disabled, endpoint,    loaded   is_async, returns_answer
            outcomes
                                                  refused  error
    run     id, data, connection                  done     id, returned, parts
                                                  failed   id, error
    cancel  id                                    blocked  id, message
    stop                                          held     id

``hello`` is understood by every version of either side: the worker answers it in any case, and where the
``protocol`` is another than its own it then ends. ``core`` is the version of agentrl-core beside the agent, null where
none is installed as a distribution, and ``python`` the interpreter's. ``parts`` are those of the rewards in
``returned`` (see ``with_parts``). ``disabled`` names plugins, which need not be
installed there. ``endpoint``, which stays the same, and ``connection``, the episode's, hold ``base_url`` and
``api_key``, ``connection`` also ``model``. A worker loads one agent; one that has ``refused`` it waits for ``stop``.

Every ``run`` is answered by one ``done`` or ``failed``, also after ``cancel``, unless the worker dies. ``cancel``
cancels the episode's task, and the answer comes when that has ended: an agent may take its time over it, or go on
regardless, and a synchronous one does not notice at all. Only the end of the process ends those. ``blocked``, at most
once a spell, tells that an episode (null where unknown) keeps the worker's event loop from the others, or from what
the rollout says. ``held``, at most once, tells that a blocking call of an episode that has ended (``id``) still runs
in a thread, where nothing but the end of the process ends it. ``outcomes`` are the exceptions of the agent's framework
that are outcomes, as references.

After ``stop`` the worker cancels what runs and exits with 0 within seconds, whatever threads there are. One that the
other end of the pair has left kills itself and its children, in whatever sessions those are; so does one that hears
what is no message, which it reports on standard error. Agents run in a child of the process that is started
(see ``__main__``), which ends as that child does: with its exit status, or by its signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from json import JSONEncoder, loads
from typing import Any, Final

from agentrl import errors
from agentrl.agents.exceptions import authors_traceback, describe, fingerprint_of, is_api_error, is_cut_off
from agentrl.agents.result import Reward, as_number, parts_of
from agentrl.errors import AgentError, AgentRLError, shown
from agentrl.redaction import redact

__all__ = [
    "LONGEST",
    "PROTOCOL",
    "Message",
    "decode",
    "encode",
    "error_from_json",
    "error_to_json",
    "parts_beside",
    "unfit",
    "with_parts",
    "with_traceback",
]

PROTOCOL = 3
"""Raised whenever a message changes its meaning."""

LONGEST = 64 * 2**20
"""Most bytes of one message."""

Message = dict[str, Any]

_OF_A_MISTAKE: Final[Mapping[str, Any]] = {"answer": "", "limit": None}
"""What a ``PolicyError`` has beside its message, and what it has where nothing was said."""

_WHOLE = "episode"
_CALLS = "calls"
"""Keys of a message's ``parts``: those of the episode's reward, or by response id those of rewarded calls."""


def encode(message: Mapping[str, Any]) -> bytes:
    """``message`` as a line. Numbers of other libraries become Python's.

    Raises ``TypeError`` or ``ValueError`` for what JSON cannot carry; ``unfit`` says where that is. ``unfit`` also
    finds what would arrive as something else, which raises nothing here.
    """
    return _ENCODER.encode(message).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> Message:
    """The message in a line. Raises ``ValueError`` for anything else."""
    try:
        message = loads(line)
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {line[:80]!r}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError(f"no message of the worker protocol: {line[:80]!r}")
    return message


def unfit(value: Any, at: str) -> str | None:
    """The first part of ``value`` that would not arrive as it is, with its type and its place below ``at``.

    A tuple arrives as a list, and a number of another library as Python's: those are fit.
    """
    try:
        return _unfit(value, at, ())
    except RecursionError:
        return f"{at}, which is nested too deeply"


def _unfit(value: Any, at: str, above: tuple[int, ...]) -> str | None:
    if value is None or isinstance(value, str | int | float) or as_number(value) is not None:
        return None
    if id(value) in above:
        return f"{at}, which contains itself"
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"the key {shown(key, 80)} of {at}, a {type(key).__name__}"
            if found := _unfit(item, f"{at}[{key!r}]", inside):
                return found
        return None if isinstance(value, dict) else f"{at}, a {type(value).__name__}"
    if isinstance(value, list | tuple):
        faults = (_unfit(item, f"{at}[{index}]", inside) for index, item in enumerate(value))
        return next(filter(None, faults), None)
    return f"{at}, a {type(value).__name__}"


def parts_beside(returned: Any) -> dict[str, Any]:
    """The named parts of the rewards in ``returned``, which JSON's numbers cannot hold; empty where there are none."""
    if parts := parts_of(returned):
        return {_WHOLE: dict(parts)}
    if isinstance(returned, Mapping):
        calls = {call: dict(parts) for call, value in returned.items() if (parts := parts_of(value))}
        return {_CALLS: calls} if calls else {}
    return {}


def with_parts(returned: Any, beside: Mapping[str, Any]) -> Any:
    """What an agent returned, from ``returned`` and ``parts`` of its message."""
    if _WHOLE in beside:
        return Reward(returned, **beside[_WHOLE])
    if _CALLS in beside:
        return {
            call: Reward(value, **beside[_CALLS][call]) if call in beside[_CALLS] else value
            for call, value in returned.items()
        }
    return returned


def error_to_json(error: BaseException) -> dict[str, Any]:
    """What an agent, or loading one, raised."""
    fingerprint, traceback = fingerprint_of(error), authors_traceback(error)
    told = {"fix": getattr(error, "fix", None), "fingerprint": fingerprint, "traceback": traceback}
    seen = {"api_error": is_api_error(error), "cut_off": is_cut_off(error)}
    if isinstance(error, AgentRLError):
        answer = {name: getattr(error, name, default) for name, default in _OF_A_MISTAKE.items()}
        mistake = {**answer, **seen} if isinstance(error, errors.PolicyError) else {}
        return {"kind": _kind(error), "message": _message(error), **told, **mistake}
    return {"kind": None, "message": describe(error), **told, "fix": None, **seen}


def error_from_json(error: Mapping[str, Any]) -> AgentRLError:
    """One of our own errors again; any other is the agent's. A note of it holds its traceback there."""
    named = getattr(errors, str(error["kind"]), None)
    kind = named if isinstance(named, type) and issubclass(named, AgentRLError) else AgentError
    known = kind is errors.PolicyError
    extra = {name: error.get(name, default) for name, default in _OF_A_MISTAKE.items()} if known else {}
    made: AgentRLError = kind(error["message"], fix=error["fix"], fingerprint=error.get("fingerprint"), **extra)
    return with_traceback(made, error)


def with_traceback(made: AgentRLError, error: Mapping[str, Any]) -> AgentRLError:
    """``made`` from ``error``, with a note of the traceback that it had in the other process."""
    if text := error.get("traceback"):
        made.add_note(f"in the agent's process:\n{text}".rstrip())
    return made


def _message(error: AgentRLError) -> str:
    """A class derived elsewhere need not have called ours when it was made."""
    return redact(str(error.message)) if hasattr(error, "message") else describe(error)


def _kind(error: AgentRLError) -> str:
    """The name of the nearest class of ours: a plugin may have derived its own, which the other side lacks."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


def _number(value: Any) -> bool | int | float:
    number = as_number(value)
    if number is None:
        raise TypeError(f"JSON cannot carry a {type(value).__name__}")
    native = value.item() if hasattr(value, "item") else number  # numpy's integers and booleans stay what they are.
    return native if isinstance(native, int | float) else number


_ENCODER = JSONEncoder(default=_number, ensure_ascii=False)
"""Of our own: an agent's module may put another function in the place of ``json.dumps``."""
