"""From files, environment and command line to one validated configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from agentrl.config import sources
from agentrl.config.fitting import fitted, holds_text, is_short
from agentrl.config.models import AS_WRITTEN, Config
from agentrl.config.paths import to_folder
from agentrl.config.sources import Source
from agentrl.config.syntax import parse_text, parse_value, to_yaml
from agentrl.config.validation import config_error
from agentrl.config.written import Written
from agentrl.errors import ConfigError

__all__ = ["Resolved", "dump_yaml", "load_config", "resolve_config"]

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and where each of its values came from."""

    config: Config
    provenance: dict[str, str]
    """By dotted key: `default`, `file config.yaml:3`, `environment AGENTRL_SEED` or `command line`."""


def load_config(
    path: str | os.PathLike[str] | None = None,
    *overrides: str,
    environ: Mapping[str, str] | None = None,
    agent: str | None = None,
) -> Config:
    """The configuration that a file, the environment and ``key.sub=value`` overrides make together.

    Overrides win over the environment (``AGENTRL_ROLLOUT__GROUP_SIZE=4``), that over the file, and that over
    the defaults. ``environ`` is the process's own unless given; ``agent`` names the agent and keeps the keys
    that the file gives it. Raises ``ConfigError`` for a key that does not exist, a value of the wrong type or
    a file that cannot be read, with the place where it was written.
    """
    return resolve_config(path, *overrides, environ=environ, agent=agent).config


def resolve_config(
    path: str | os.PathLike[str] | None = None,
    *overrides: str,
    environ: Mapping[str, str] | None = None,
    agent: str | None = None,
    model: str | None = None,
) -> Resolved:
    """As ``load_config``, with the provenance of every value; ``model`` names the model as ``agent`` does the agent."""
    layers = [
        _command_line(overrides, {"agent": agent, "model": model}),
        sources.environment(os.environ if environ is None else environ, _parse),
        *([sources.file(Path(os.path.expanduser(path)))] if path is not None else []),
        sources.defaults(_defaults()),
    ]
    try:
        config = Config.model_validate(fitted(Config, sources.merged(layers)))
    except ValidationError as error:
        raise config_error(error, Config, origin=lambda key: _nearest_place(layers, key)) from error
    return Resolved(config, {key: _place(layers, key) or DEFAULT for key in _leaves(_plain(config))})


def _defaults() -> dict[str, Any]:
    """What holds where nobody says otherwise. Held-out tasks depend on those that are trained: their section knows."""
    values = _plain(Config())
    del values["tasks"]["eval"]
    return values


def dump_yaml(config: Config, folder: Path | None = None) -> str:
    """``config`` as a YAML file that ``load_config`` reads back equal, from ``folder``, by default the current one."""
    values = _jsonable(config.model_dump(context=AS_WRITTEN))
    return to_yaml(values if folder is None else to_folder(values, folder))


def _jsonable(value: Any) -> Any:
    """What a script may have set as plain data; what was written stays as it was."""
    if isinstance(value, Mapping):
        return {key: _jsonable(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_jsonable(held) for held in value]
    return value if isinstance(value, Written) else to_jsonable_python(value)


def _command_line(overrides: Sequence[str], names: Mapping[str, str | None]) -> Source:
    """The overrides, and beside them what ``names`` says of the sections that are its keys."""
    source = sources.command_line(overrides, _parse)
    for section, name in names.items():
        if name is not None:
            given = source.values.get(section, {})
            if not isinstance(given, dict) or "name" in given:
                raise ConfigError(
                    f"the {section} is named twice, as {name!r} and by an override", fix="leave one of them out"
                )
            source.values[section] = {**given, "name": name}
    return source


def _parse(names: Sequence[str], text: str) -> Any:
    """The value of an override: text where its key holds text."""
    return parse_text(text, short=is_short(Config, names)) if holds_text(Config, names) else parse_value(text)


def _plain(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _place(layers: Sequence[Source], key: str) -> str | None:
    return next((place for layer in layers if (place := layer.place(key))), None)


def _nearest_place(layers: Sequence[Source], key: str) -> str | None:
    """Where ``key``, or failing that the part that it is missing from, was written."""
    while key:
        place = _place(layers, key)
        if place and place != DEFAULT:
            return place
        key = key.rpartition(".")[0]
    return None


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of everything but mappings with keys; one whose keys hold dots themselves stays whole."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and not any("." in key for key in value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
