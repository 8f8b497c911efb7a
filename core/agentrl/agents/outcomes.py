"""Exceptions that are outcomes: those of an agent's framework for what the policy did wrong."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterator, Sequence

from agentrl.agents.raising import describe, is_breakage
from agentrl.errors import AgentRLError, ConfigError, PolicyError
from agentrl.plugins.references import (
    FileReference,
    ModuleReference,
    attribute_of,
    import_file,
    import_module,
    parse_reference,
)

__all__ = ["Outcomes", "as_outcomes", "find_outcomes"]

Outcomes = tuple[type[Exception], ...]

_NOUN = "agent.outcomes"
_FORM = "write pkg.mod:Exception, as in pydantic_ai.exceptions:UnexpectedModelBehavior"


def find_outcomes(references: Sequence[str]) -> Outcomes:
    """The exceptions that the config's ``agent.outcomes`` names, in this interpreter.

    Raises ``ConfigError`` for one that there is not, or that is none, and ``PluginError`` where its module does not
    load.
    """
    return tuple(map(_find, references))


@contextlib.contextmanager
def as_outcomes(kinds: Outcomes) -> Iterator[None]:
    """Within it, an exception of one of ``kinds`` is the policy's mistake, and so is a group that holds no other.

    One that tells of what broke around the agent, such as an inference engine that does not answer, is no outcome
    whatever its kind.
    """
    try:
        yield
    except Exception as error:
        if kinds and _is_outcome(error, kinds):
            raise PolicyError(describe(error)) from error
        raise


def _is_outcome(error: BaseException, kinds: Outcomes) -> bool:
    if isinstance(error, AgentRLError):
        return False
    if isinstance(error, kinds):
        return not is_breakage(error)
    return isinstance(error, ExceptionGroup) and all(_is_outcome(each, kinds) for each in error.exceptions)


def _find(text: str) -> type[Exception]:
    match parse_reference(text):
        case ModuleReference(module, attribute, folder):
            where = f"agent.outcomes: module {module!r}"
            found = attribute_of(import_module(module, _NOUN, folder), attribute, where)
        case FileReference(path, str(attribute)):
            found = attribute_of(import_file(path, _NOUN), attribute, f"agent.outcomes: file {str(path)!r}")
        case _:
            known = f"builtins:{text}" if isinstance(getattr(builtins, text, None), type) else ""
            fix = f"write {known}" if known else _FORM
            raise ConfigError(f"agent.outcomes holds {text!r}, which names no exception", fix=fix)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise ConfigError(
            f"agent.outcomes holds {text!r}, which is no exception that can be an outcome: it does not derive from "
            "Exception",
            fix=_FORM,
        )
    return found
