"""From the command line, the environment, a file and the defaults to one validated configuration.

pydantic-settings merges the sources, the first one winning: mappings key by key, anything else whole. So `key=value`
replaces what lower sources hold at that key, and `key.sub=value` changes one key below it. Where a lower source names
a part and a higher one adds keys, the name becomes the part's `name`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from agentrl.config.errors import config_error
from agentrl.config.keys import fitted, holds_text, is_short
from agentrl.config.models import Config
from agentrl.config.paths import from_folder, to_folder
from agentrl.config.section import AS_WRITTEN, Written
from agentrl.config.syntax import parse_document, parse_text, parse_value, to_yaml
from agentrl.environ import PREFIX, RESERVED
from agentrl.errors import ConfigError, near_files

__all__ = ["Resolved", "dump_yaml", "load_config", "resolve_config"]

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and where each of its values was written."""

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
    """As ``load_config``, with the source of every value. ``model`` names the model, as ``agent`` names the agent."""
    layers = [
        _command_line_naming(overrides, {"agent": agent, "model": model}),
        _environment(os.environ if environ is None else environ, _parse),
        *([_file(Path(os.path.expanduser(path)))] if path is not None else []),
        Source(_defaults(), {}, DEFAULT),
    ]
    try:
        config = Config.model_validate(fitted(Config, _merged(layers)))
    except ValidationError as error:
        raise config_error(error, Config, origin=lambda key: _nearest_place(layers, key)) from error
    provenance = {key: _place(layers, key) or DEFAULT for key in _leaves(_plain(config))}
    config.remember({key: place for key, place in provenance.items() if place != DEFAULT})
    return Resolved(config, provenance)


def _defaults() -> dict[str, Any]:
    """The defaults, but for those that depend on other keys, which the models set."""
    values = _plain(Config())
    for section, key in (("tasks", "eval"), ("rollout", "on_stale"), ("rollout", "max_staleness")):
        del values[section][key]
    return values


def dump_yaml(config: Config, folder: Path | None = None) -> str:
    """``config`` as a YAML file that ``load_config`` reads back equal, from ``folder``, by default the current one."""
    values = _jsonable(config.model_dump(context=AS_WRITTEN))
    return to_yaml(values if folder is None else to_folder(values, folder))


def _jsonable(value: Any) -> Any:
    """``value`` as plain data, whatever a script has set; a ``Written`` stays one."""
    if isinstance(value, Mapping):
        return {key: _jsonable(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_jsonable(held) for held in value]
    return value if isinstance(value, Written) else to_jsonable_python(value)


def _command_line_naming(overrides: Sequence[str], names: Mapping[str, str | None]) -> Source:
    """The overrides, and beside them the names that the command line gives apart, by their section."""
    source = _command_line(overrides, _parse)
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
    """Where ``key`` was written, or else the section that it belongs to."""
    while key:
        place = _place(layers, key)
        if place and place != DEFAULT:
            return place
        key = key.rpartition(".")[0]
    return None


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values. A mapping is entered, unless it is empty or has a key with a dot in it."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and not any("." in key for key in value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


Values = dict[str, Any]
Parse = Callable[[Sequence[str], str], Any]
"""From the names of a key and the text of its override to its value."""


class Source:
    """The values of one source, nested, and for each key the words that say where it was written."""

    def __init__(self, values: Values, written_at: Mapping[str, str], default_place: str) -> None:
        self.values = values
        self._written_at = written_at
        self._default_place = default_place

    def place(self, key: str) -> str | None:
        """Where the dotted ``key``, or the mapping that holds it, was written; ``None`` where it was not."""
        value: Any = self.values
        names = key.split(".")
        for depth, name in enumerate(names):
            if _is_name(value) and names[depth:] in (["name"], ["type"]):
                break
            if not isinstance(value, Mapping) or name not in value:
                return None
            value = value[name]
        return self._nearest(names)

    def _nearest(self, names: Sequence[str]) -> str:
        held = (".".join(names[:depth]) for depth in range(len(names), 0, -1))
        return next((self._written_at[key] for key in held if key in self._written_at), self._default_place)


def _command_line(overrides: Iterable[str], parse: Parse) -> Source:
    """``key.sub=value`` arguments, the last one winning. Raises ``ConfigError`` for one of another form."""
    values: Values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"{override!r} sets nothing", fix="write key.sub=value, as in training.steps=100")
        _assign(values, names, _value(parse, names, text, f"command line: {key.strip()}"))
    return Source(values, {}, "command line")


def _environment(environ: Mapping[str, str], parse: Parse) -> Source:
    """Variables such as ``AGENTRL_ROLLOUT__GROUP_SIZE``."""
    values: Values = {}
    written_at: dict[str, str] = {}
    variables = [name for name in environ if name.startswith(PREFIX) and name not in RESERVED]
    for variable in sorted(variables, key=len):
        names = variable.removeprefix(PREFIX).lower().split("__")
        place = f"environment {variable}"
        _assign(values, names, _value(parse, names, environ[variable], place))
        written_at[".".join(names)] = place
    return Source(values, written_at, "environment")


def _file(path: Path) -> Source:
    """A YAML file; its paths are relative to it. Raises ``ConfigError`` where it cannot be read or is no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"config file {str(path)!r} does not exist", fix=near_files(path, path.parent.glob("*.y*ml"), "YAML file")
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    document = parse_document(text, str(path))
    if not isinstance(document.values, dict):
        raise ConfigError(f"config file {str(path)!r} holds no keys", fix="write a mapping, such as `seed: 0`")
    written_at = {key: f"file {path}:{line}" for key, line in document.lines.items()}
    return Source(from_folder(document.values, path.parent), written_at, f"file {path}")


def _merged(sources: Sequence[Source]) -> Values:
    """The values of ``sources``, the highest of which comes first."""

    class Merged(BaseSettings, extra="allow"):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(_Layer(settings_cls, source.values) for source in sources)

    return Merged().model_extra or {}


class _Layer(PydanticBaseSettingsSource):
    """A source in the form in which pydantic-settings merges it with those above it."""

    def __init__(self, settings_cls: type[BaseSettings], values: Values) -> None:
        super().__init__(settings_cls)
        self._values = values

    def __call__(self) -> Values:
        return _spelled_out(self._values, self.current_state)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False


def _spelled_out(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> Values:
    """``lower`` with names written as ``{name: …}`` wherever ``upper`` has keys to put beside them."""
    return {key: _beside(value, upper[key]) if key in upper else value for key, value in lower.items()}


def _beside(lower: Any, upper: Any) -> Any:
    if not isinstance(upper, Mapping):
        return lower
    if _is_name(lower):
        return {"name": lower}
    return _spelled_out(lower, upper) if isinstance(lower, Mapping) else lower


def _assign(values: Values, names: Sequence[str], value: Any) -> None:
    """Set the value at the path ``names``. Missing mappings are made, and a name on the way becomes ``{name: …}``."""
    *parents, last = names
    for name in parents:
        held = values.get(name)
        values[name] = held if isinstance(held, dict) else {"name": held} if _is_name(held) else {}
        values = values[name]
    values[last] = value


def _is_name(value: Any) -> bool:
    """Whether a value may be the name of a part: text, or a scalar other than null that was written without quotes."""
    return isinstance(value, str) or (isinstance(value, Written) and value.value is not None)


def _value(parse: Parse, names: Sequence[str], text: str, place: str) -> Any:
    try:
        return parse(names, text)
    except ConfigError as error:
        raise ConfigError(
            f"{place}: {error.message}", fix="quote text that begins with a bracket or a quote"
        ) from error
