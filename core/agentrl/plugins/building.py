"""Constructing a part of a run from its name and its keys.

The object that the name means is called with those of the run's own values (the *context*) that its
signature takes, and with the part's keys:

- where it declares ``Settings``, a pydantic model, they are validated by it and passed as ``settings``
  (an object without such a parameter finds them where the contract of its kind says);
- otherwise they are keyword arguments, checked against the signature and its annotations.

A reward and a normaliser may be the function itself: it is not called now, only given its keys. An object that
cannot be called is the part already, and takes no keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from inspect import Parameter, formatannotation
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

from agentrl.errors import AgentRLError, ConfigError, PluginError, near_matches
from agentrl.extras import missing_extra
from agentrl.plugins.references import reason_of

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["PartLike", "build"]

_CALLED_LATER = {"rewards": ("data", "episode"), "normalisers": ()}
"""Kinds whose object may be the function itself, and what that is passed by name beside its first argument."""


class PartLike(Protocol):
    """A part as the configuration holds it."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> dict[str, Any]:
        """The keys beside the name."""
        ...


def build(obj: Any, kind: str, part: PartLike, key: str, context: Mapping[str, object]) -> Any:
    """Construct ``obj``, which ``part`` names; ``key`` is where the part stands in the configuration.

    Raises ``ConfigError`` for a key of the part that is unknown, missing or of the wrong type, and
    ``PluginError`` where the object's own code raises.
    """
    if not callable(obj):
        _refuse_unknown(part.options, (), key, part.name)
        return obj
    try:
        if kind in _CALLED_LATER and not inspect.isclass(obj):
            later = [*list(inspect.signature(obj).parameters)[:1], *_CALLED_LATER[kind]]
            arguments = _arguments(obj, part, key, context, reserved=later)
            return partial(obj, **arguments) if arguments else obj
        return obj(**_arguments(obj, part, key, context))
    except AgentRLError:
        raise
    except Exception as error:
        if missing := missing_extra(error):
            raise PluginError(f"{key}={part.name!r} cannot be used: {missing.message}", fix=missing.fix) from error
        raise PluginError(f"{key}={part.name!r} could not be built: {reason_of(error)}") from error


def _arguments(
    obj: Callable[..., Any], part: PartLike, key: str, context: Mapping[str, object], reserved: Collection[str] = ()
) -> dict[str, object]:
    """What ``obj`` is called with; the part's keys may not fill parameters that are ``reserved`` for a later call."""
    parameters = inspect.signature(obj).parameters
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {name: value for name, value in context.items() if is_open or name in parameters}
    settings: type[BaseModel] | None = getattr(obj, "Settings", None)
    if settings is not None:
        validated = _settings(settings, _written(part), key, part.name)
        return {**given, "settings": validated} if is_open or "settings" in parameters else given
    taken = {*context, *reserved}
    free = {name: p for name, p in parameters.items() if name not in taken and _is_named(p)}
    _refuse_unknown([name for name in part.options if name in taken or not is_open], free, key, part.name)
    _refuse_missing(part.options, free, key, part.name)
    return {**given, **_converted(obj, _written(part), key)}


def _written(part: PartLike) -> Mapping[str, Any]:
    """The keys of ``part``, those of a configuration as they were written."""
    written: Mapping[str, Any] = getattr(part, "written", part.options)
    return written


def _settings(settings: type[BaseModel], options: Mapping[str, Any], key: str, part: str) -> BaseModel:
    from pydantic import ValidationError

    from agentrl.config.errors import config_error
    from agentrl.config.keys import fitted, key_names

    if settings.model_config.get("extra") != "allow":
        _refuse_unknown(options, key_names(settings), key, part)
    try:
        return settings.model_validate(fitted(settings, options))
    except ValidationError as error:
        raise config_error(error, settings, at=key) from error


def _is_named(parameter: Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _refuse_unknown(options: Iterable[str], known: Collection[str], key: str, part: str) -> None:
    for name in options:
        if name not in known:
            near = near_matches(name, known)
            fix = near if near.startswith("did") else f"{part!r} has {', '.join(sorted(known)) or 'none'}"
            raise ConfigError(f"there is no key '{key}.{name}'", fix=fix, key=f"{key}.{name}")


def _refuse_missing(options: Mapping[str, Any], free: Mapping[str, Parameter], key: str, part: str) -> None:
    for name, parameter in free.items():
        if parameter.default is parameter.empty and name not in options:
            raise ConfigError(
                f"{key}.{name} is missing{_kind(parameter.annotation)}",
                fix=f"{part!r} needs it: set {key}.{name}",
                key=f"{key}.{name}",
            )


def _kind(annotation: object) -> str:
    """What a parameter takes, where its author says so."""
    if annotation is Parameter.empty:
        return ""
    return f", a {annotation if isinstance(annotation, str) else formatannotation(annotation)}"


def _converted(obj: Callable[..., Any], options: Mapping[str, Any], key: str) -> dict[str, object]:
    """The keys as the types that ``obj`` annotates."""
    types = _types(obj) if options else {}
    return {name: _as(types.get(name, Any), value, f"{key}.{name}") for name, value in options.items()}


def _types(obj: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of what is called; none where they name types that only a type checker imports."""
    function = obj.__init__ if inspect.isclass(obj) else obj if inspect.isroutine(obj) else type(obj).__call__
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:
        return {}


def _as(annotation: Any, value: object, key: str) -> object:
    from pydantic import BaseModel, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError

    from agentrl.config.errors import config_error
    from agentrl.config.keys import fitted_to
    from agentrl.config.section import plain

    try:
        return TypeAdapter(annotation).validate_python(plain(fitted_to(annotation, value)))
    except ValidationError as error:
        raise config_error(error, BaseModel, at=key) from error
    except PydanticSchemaGenerationError:
        return plain(value)
