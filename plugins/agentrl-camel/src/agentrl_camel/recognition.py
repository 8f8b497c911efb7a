"""Telling a CAMEL agent, or a factory of one, from anything else, without CAMEL."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from camel.agents import ChatAgent

__all__ = ["factory_of", "is_agent"]

_NAME = "ChatAgent"


def is_agent(obj: object) -> TypeGuard[ChatAgent]:
    """Whether ``obj`` is a ``ChatAgent``, of whatever class, and no agent of agentrl's already."""
    return _is_agent_class(type(obj)) and not _is_agentrls(obj)


def factory_of(obj: object) -> Callable[..., Any] | None:
    """``obj`` as something to call for a ``ChatAgent``; ``None`` where it is no factory.

    A factory is a function or callable object whose return annotation is ``ChatAgent`` or a class of one, a class
    whose instances are such, or a class of agents of somebody's own. Raises ``ConfigError`` for a class of
    factories that cannot be made.
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
        return None if _is_camels(kind) else kind  # A file that imports CAMEL's classes means none of them.
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
    """What ``function`` says that it returns; a text where that can be looked up by type checkers only."""
    try:
        try:
            return inspect.signature(function, eval_str=True).return_annotation
        except NameError:
            return inspect.signature(function).return_annotation
    except Exception:  # The boundary to whatever is asked: an annotation is code, and much has no signature.
        return None
