"""The plugin: it recognises CAMEL's agents, and factories of them, among the objects that agentrl is given.

It is loaded in every run, so it imports CAMEL, which takes seconds, only for an object that is one of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

from agentrl import ConfigError, hookimpl

if TYPE_CHECKING:
    from camel.agents import ChatAgent

__all__ = ["agentrl_adapt_agent"]

_NAME = "ChatAgent"


@hookimpl
def agentrl_adapt_agent(obj: object) -> object | None:
    """A ``ChatAgent``, or a factory of one, as an agentrl agent; ``None`` for any other object.

    Raises ``ConfigError`` for an agent of which no copies can be made, and for a factory that needs arguments which
    nothing provides.
    """
    if _is_agent(obj):
        from agentrl_camel.adapter import AdaptedAgent

        return AdaptedAgent(obj)
    factory = _factory_of(obj)
    if factory is None:
        return None
    from agentrl_camel.adapter import AdaptedFactory

    return AdaptedFactory(factory)


def _is_agent(obj: object) -> TypeGuard[ChatAgent]:
    """Whether ``obj`` is a ``ChatAgent`` or an instance of a subclass, and not an agentrl agent already."""
    return _is_agent_class(type(obj)) and not _is_agentrls(obj)


def _factory_of(obj: object) -> Callable[..., Any] | None:
    """``obj`` as a callable that makes a ``ChatAgent``; ``None`` where it is not a factory.

    A factory is a function or callable object whose return annotation is ``ChatAgent`` or a subclass, a class whose
    instances are such callables, or a subclass of ``ChatAgent`` outside CAMEL. Raises ``ConfigError`` for a class of
    factories whose ``__init__`` needs arguments.
    """
    if _is_agentrls(obj):
        return None
    if inspect.isclass(obj):
        return _factory_of_class(obj)
    return obj if callable(obj) and _returns_agent(obj) else None


def _is_agentrls(obj: object) -> bool:
    return inspect.iscoroutinefunction(getattr(obj, "run", None))


def _factory_of_class(kind: type[Any]) -> Callable[..., Any] | None:
    if _is_agent_class(kind):
        return None if _is_camels(kind) else kind  # A file that imports CAMEL's own classes does not offer them.
    called = vars(kind).get("__call__")
    if not callable(called) or not _returns_agent(called):
        return None
    try:
        inspect.signature(kind).bind()
    except TypeError as error:
        raise ConfigError(
            f"{kind.__qualname__}, whose instances make a ChatAgent, cannot be made: {error}",
            fix="give the parameters of its __init__ defaults, or name an instance",
        ) from error
    factory: Callable[..., Any] = kind()
    return factory


def _is_agent_class(kind: type[Any]) -> bool:
    return any(base.__name__ == _NAME and _is_camels(base) for base in kind.__mro__)


def _is_camels(kind: type[Any]) -> bool:
    return kind.__module__.partition(".")[0] == "camel"


def _returns_agent(function: Callable[..., Any]) -> bool:
    annotation = _return_annotation(function)
    if isinstance(annotation, str):
        return annotation.rpartition(".")[2] == _NAME
    return inspect.isclass(annotation) and _is_agent_class(annotation)


def _return_annotation(function: Callable[..., Any]) -> Any:
    """The return annotation of ``function``; a text where only type checkers can resolve it."""
    try:
        try:
            return inspect.signature(function, eval_str=True).return_annotation
        except NameError:
            return inspect.signature(function).return_annotation
    except Exception:  # Any object may be asked: annotations are code, and many callables have no signature.
        return None
