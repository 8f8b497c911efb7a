"""Binding an agent to a run: which keyword arguments it is passed, and which of its exceptions are outcomes.

An agent is a class with an async ``run`` or ``__call__`` (built once an episode), an instance of one (shared by all
episodes) or an async function; in a worker process the function may be a plain one. A run offers it the *connection*
(``base_url``, ``api_key``, ``http_client``, ``model``) and the keys of the config's ``agent.kwargs``; it is passed
those that its signature takes.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.agents.contract import AgentWorkflow, Data
from agentrl.agents.exceptions import describe, is_breakage
from agentrl.errors import AgentRLError, ConfigError, PolicyError, near_matches
from agentrl.plugins.references import (
    FileReference,
    ModuleReference,
    attribute_of,
    dotted_reference,
    import_file,
    import_module,
    parse_reference,
)

__all__ = ["CONNECTION", "BoundAgent", "bind_agent", "reference_of"]

CONNECTION = ("base_url", "api_key", "http_client", "model")
"""The keyword arguments that every run offers."""

Run = Callable[..., Any]
Outcomes = tuple[type[Exception], ...]

_OUTCOMES_KEY = "agent.outcomes"
_OUTCOME_FORM = "write pkg.mod:Exception, as in pydantic_ai.exceptions:UnexpectedModelBehavior"
_PROTOCOL_INIT = AgentWorkflow.__init__


@dataclass(frozen=True, slots=True)
class BoundAgent:
    """An agent and the config's kwargs, divided into those of ``__init__`` and those of ``run``."""

    name: str
    is_async: bool
    """Whether ``call`` returns a coroutine; an agent that is not async blocks its thread until it is done."""
    returns_answer: bool
    """Whether the agent declares, by an attribute of this name, that what it returns is never a reward."""
    _target: Any
    _init_kwargs: Mapping[str, Any]
    _run_kwargs: Mapping[str, Any]
    _connection: frozenset[str]
    _outcomes: Outcomes = ()

    def takes(self, name: str) -> bool:
        """Whether the agent is passed ``name``, one of ``CONNECTION``."""
        return name in self._connection

    def call(self, data: Data, connection: Mapping[str, Any]) -> Any:
        """Call the agent for one episode: returns the coroutine of an async agent, and the result of any other.

        ``connection`` has a value for each key of ``CONNECTION``; those that the signature takes are passed. Whatever
        the agent raises passes through, but for the exceptions that the config declares outcomes: those are raised
        as ``PolicyError``.
        """
        taken = {name: value for name, value in connection.items() if name in self._connection}
        if not self._outcomes:
            return self._run()(data, **self._run_kwargs, **taken)
        if self.is_async:
            return self._awaited(data, taken)
        with _as_outcomes(self._outcomes):
            return self._run()(data, **self._run_kwargs, **taken)

    async def _awaited(self, data: Data, taken: Mapping[str, Any]) -> Any:
        with _as_outcomes(self._outcomes):
            return await self._run()(data, **self._run_kwargs, **taken)

    def _run(self) -> Run:
        target: Any = self._target(**self._init_kwargs) if inspect.isclass(self._target) else self._target
        run: Run = _run_attribute(target)
        return run


def bind_agent(
    agent: Any, kwargs: Mapping[str, Any], *, name: str, allow_sync: bool = False, outcomes: Sequence[str] = ()
) -> BoundAgent:
    """Check that ``agent`` is one and that every key of ``kwargs`` is taken.

    ``outcomes`` are references to exceptions of its framework that mean a mistake of the policy (``agent.outcomes``).

    Raises ``ConfigError`` for an object that is no agent or, unless ``allow_sync``, is not async, for a key
    that neither ``__init__`` nor ``run`` takes, for a parameter that nothing provides, and for a reference that names
    no exception; ``PluginError`` where the module of such a reference does not import.
    """
    run = _run_of(agent, name)
    is_async = _is_async(run)
    if not (is_async or allow_sync):
        raise ConfigError(
            f"agent {name!r} is not async: {getattr(run, '__qualname__', run)} is a plain function",
            fix="make it `async def` and use AsyncOpenAI, or run it in worker processes with rollout.mode=subproc",
        )
    if inspect.isgeneratorfunction(_function_of(run)):
        raise ConfigError(f"agent {name!r} is a generator", fix="return the reward instead of yielding")
    init_takes = _Parameters.of(agent.__init__, skip=1) if _has_own_init(agent) else _Parameters()
    positional = 2 if _is_unbound(agent) else 1
    run_takes = _Parameters.of(run, skip=positional)
    _refuse_unknown(kwargs, init_takes, run_takes, name)
    bound = BoundAgent(
        name=name,
        is_async=is_async,
        returns_answer=bool(getattr(agent, "returns_answer", False)),
        _target=agent,
        _init_kwargs={key: value for key, value in kwargs.items() if init_takes.takes(key, beside=run_takes)},
        _run_kwargs={key: value for key, value in kwargs.items() if run_takes.takes(key, beside=init_takes)},
        _connection=frozenset(key for key in CONNECTION if run_takes.accepts(key) and key not in kwargs),
        _outcomes=tuple(map(_outcome, outcomes)),
    )
    _refuse_unprovided(bound, init_takes, run_takes)
    _refuse_uncallable(bound, run, positional)
    return bound


def reference_of(agent: Any) -> str:
    """The reference by which another process finds an agent that was passed as an object.

    That is ``file.py:Obj`` for what a script defines and ``pkg.mod:Obj`` for what a module does. An instance, or what
    is defined inside a function, has none: the plain name that is returned for it only labels the run.
    """
    if not (inspect.isclass(agent) or inspect.isfunction(agent)):
        return type(agent).__name__
    if "<locals>" in agent.__qualname__:
        return agent.__name__
    if agent.__module__ != "__main__":
        return f"{agent.__module__}:{agent.__qualname__}"
    script = getattr(sys.modules["__main__"], "__file__", None)
    return f"{Path(script).resolve()}:{agent.__qualname__}" if script else agent.__name__


@dataclass(frozen=True, slots=True)
class _Parameters:
    """Which keyword arguments a callable takes."""

    optional: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    open: bool = False
    """Whether it takes ``**kwargs``."""

    @classmethod
    def of(cls, function: Callable[..., Any], *, skip: int) -> _Parameters:
        """Those of ``function`` after its first ``skip`` positional parameters."""
        parameters = list(inspect.signature(function).parameters.values())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:skip]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p not in positional]
        return cls(
            optional=frozenset(p.name for p in named if p.default is not p.empty),
            required=frozenset(p.name for p in named if p.default is p.empty),
            open=any(p.kind is p.VAR_KEYWORD for p in parameters),
        )

    def names(self, key: str) -> bool:
        return key in self.optional or key in self.required

    def accepts(self, key: str) -> bool:
        return self.open or self.names(key)

    def takes(self, key: str, *, beside: _Parameters) -> bool:
        """Whether it is given ``key``: ``**kwargs`` gets what the callable ``beside`` it does not name."""
        return self.names(key) or (self.open and not beside.names(key))


def _run_attribute(agent: Any) -> Any:
    """``run``, else what a call of the agent, or of what a class makes, calls."""
    if hasattr(agent, "run"):
        return agent.run
    return agent.__call__ if _makes_callables(agent) else agent


def _makes_callables(agent: Any) -> bool:
    """Whether it is a class whose own instances can be called; any class can."""
    return inspect.isclass(agent) and any("__call__" in vars(base) for base in agent.__mro__)


def _is_unbound(agent: Any) -> bool:
    """Whether ``run`` is a plain method of a class, whose signature still shows ``self``."""
    name = "run" if hasattr(agent, "run") else "__call__"
    return inspect.isclass(agent) and not isinstance(inspect.getattr_static(agent, name), staticmethod | classmethod)


def _run_of(agent: Any, name: str) -> Callable[..., Any]:
    run: Callable[..., Any] = _run_attribute(agent)
    if not callable(run) or (inspect.isclass(agent) and run is agent):
        raise ConfigError(
            f"{name!r} is no agent: {_kind(agent)} has no `run` and cannot be called",
            fix="an agent is a class or object with `async def run(self, data, **extra_kwargs)`, or an async function",
        )
    if inspect.isasyncgenfunction(_function_of(run)):
        raise ConfigError(f"agent {name!r} is an async generator", fix="return the reward instead of yielding")
    return run


def _kind(agent: Any) -> str:
    return f"the class {agent.__name__}" if inspect.isclass(agent) else f"a {type(agent).__name__}"


def _function_of(run: Callable[..., Any]) -> Callable[..., Any]:
    return run if inspect.isroutine(run) else type(run).__call__


def _is_async(run: Callable[..., Any]) -> bool:
    while isinstance(run, functools.partial):
        run = run.func
    return any(inspect.iscoroutinefunction(candidate) for candidate in (run, inspect.unwrap(_function_of(run))))


def _has_own_init(agent: Any) -> bool:
    """Whether the author wrote one: a class that derives from a protocol has a stand-in, which takes anything."""
    return inspect.isclass(agent) and agent.__init__ not in (object.__init__, _PROTOCOL_INIT)


def _refuse_unknown(kwargs: Mapping[str, Any], init: _Parameters, run: _Parameters, name: str) -> None:
    for key in kwargs:
        if not (init.accepts(key) or run.accepts(key)):
            known = (init.optional | init.required | run.optional | run.required) - set(CONNECTION)
            raise ConfigError(f"agent {name!r} takes no {key!r} (agent.kwargs.{key})", fix=near_matches(key, known))


def _refuse_unprovided(bound: BoundAgent, init: _Parameters, run: _Parameters) -> None:
    missing = (init.required - set(bound._init_kwargs)) | (run.required - set(bound._run_kwargs) - bound._connection)
    if missing:
        key = min(missing)
        raise ConfigError(
            f"agent {bound.name!r} needs {key!r}, which nothing provides",
            fix=f"set agent.kwargs.{key}, or give the parameter a default",
        )


def _refuse_uncallable(bound: BoundAgent, run: Callable[..., Any], positional: int) -> None:
    try:
        inspect.signature(run).bind(*range(positional), **dict.fromkeys([*bound._run_kwargs, *bound._connection]))
    except TypeError as error:
        raise ConfigError(
            f"agent {bound.name!r} cannot be called: {error}",
            fix="the task comes by position and the rest by name: `async def run(self, data, **extra_kwargs)`",
        ) from error


def _outcome(reference: str) -> type[Exception]:
    """The exception class that ``reference``, an entry of ``agent.outcomes``, names in this interpreter."""
    match dotted_reference(reference) or parse_reference(reference):
        case ModuleReference(module, str(attribute), folder):
            where = f"{_OUTCOMES_KEY}: module {module!r}"
            found = attribute_of(import_module(module, _OUTCOMES_KEY, folder), attribute, where)
        case FileReference(path, str(attribute)):
            found = attribute_of(import_file(path, _OUTCOMES_KEY), attribute, f"{_OUTCOMES_KEY}: file {str(path)!r}")
        case _:
            builtin = isinstance(getattr(builtins, reference, None), type)
            fix = f"write builtins:{reference}" if builtin else _OUTCOME_FORM
            raise ConfigError(f"{_OUTCOMES_KEY} holds {reference!r}, which names no exception", fix=fix)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise ConfigError(
            f"{_OUTCOMES_KEY} holds {reference!r}, which is no exception that can be an outcome: it does not derive "
            "from Exception",
            fix=_OUTCOME_FORM,
        )
    return found


@contextlib.contextmanager
def _as_outcomes(kinds: Outcomes) -> Iterator[None]:
    """Raise ``PolicyError`` instead of an exception of one of ``kinds``, or of a group that holds no other.

    An exception that reports a breakage around the agent, such as an inference engine that does not answer, is never
    an outcome.
    """
    try:
        yield
    except Exception as error:
        if _is_outcome(error, kinds):
            raise PolicyError(describe(error)) from error
        raise


def _is_outcome(error: BaseException, kinds: Outcomes) -> bool:
    if isinstance(error, AgentRLError):
        return False
    if isinstance(error, kinds):
        return not is_breakage(error)
    return isinstance(error, ExceptionGroup) and all(_is_outcome(each, kinds) for each in error.exceptions)
