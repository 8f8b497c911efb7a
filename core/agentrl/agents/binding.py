"""Binding an agent to a run: what its signature takes, and nothing else.

An agent is a class with an async ``run`` or ``__call__`` (built once an episode), an instance of one (shared by all
episodes) or an async function; in a worker process the function may be a plain one. What a run can give it are
the *connection* (``base_url``, ``api_key``, ``http_client``, ``model``) and the keys of the config's
``agent.kwargs``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.agents.contract import AgentWorkflow, Data
from agentrl.agents.outcomes import Outcomes, as_outcomes
from agentrl.errors import ConfigError, near_matches

__all__ = ["CONNECTION", "BoundAgent", "bind_agent"]

CONNECTION = ("base_url", "api_key", "http_client", "model")
"""The keyword arguments that every run offers."""

Run = Callable[..., Any]
_PROTOCOL_INIT = AgentWorkflow.__init__


@dataclass(frozen=True, slots=True)
class BoundAgent:
    """An agent and the config's kwargs, sorted by who takes them."""

    name: str
    is_async: bool
    """Whether ``call`` returns an awaitable; an agent that is not blocks its thread until it is done."""
    returns_answer: bool
    """Whether the agent says, by an attribute of this name, that what it returns is never a reward."""
    _target: Any
    _init_kwargs: Mapping[str, Any]
    _run_kwargs: Mapping[str, Any]
    _connection: frozenset[str]
    _outcomes: Outcomes = ()

    def takes(self, name: str) -> bool:
        """Whether the agent is passed ``name``, one of ``CONNECTION``."""
        return name in self._connection

    async def run(self, data: Data, connection: Mapping[str, Any]) -> Any:
        """Run one episode of an async agent and return what the agent returned; see ``call``."""
        with as_outcomes(self._outcomes):
            return await self.call(data, connection)

    def call(self, data: Data, connection: Mapping[str, Any]) -> Any:
        """Call the agent for one episode: an async one returns an awaitable, another what it returned.

        ``connection`` holds the keys of ``CONNECTION``; those that the signature takes are passed.
        Whatever the agent raises passes through, but for the exceptions that are outcomes: those are ``PolicyError``.
        """
        taken = {name: value for name, value in connection.items() if self.takes(name)}
        with as_outcomes(self._outcomes):
            return self._episode_run()(data, **self._run_kwargs, **taken)

    def _episode_run(self) -> Run:
        target: Any = self._target(**self._init_kwargs) if inspect.isclass(self._target) else self._target
        run: Run = _run_attribute(target)
        return run


def bind_agent(
    agent: Any, kwargs: Mapping[str, Any], *, name: str, allow_sync: bool = False, outcomes: Outcomes = ()
) -> BoundAgent:
    """Check that ``agent`` is one and that every key of ``kwargs`` is taken.

    ``outcomes`` are exceptions of its framework that tell of a mistake of the policy.

    Raises ``ConfigError`` for an object that is no agent or, unless ``allow_sync``, is not async, for a key
    that neither ``__init__`` nor ``run`` takes, and for a parameter that nothing provides.
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
        _outcomes=outcomes,
    )
    _refuse_unprovided(bound, init_takes, run_takes)
    _refuse_uncallable(bound, run, positional)
    return bound


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
