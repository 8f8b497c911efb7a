"""Where values come from: the command line, the environment, a file and the defaults.

The sources are merged by pydantic-settings, the first one winning: mappings key by key, anything else whole.
So `key=value` replaces what lower sources hold at that key, and `key.sub=value` changes one key below it. A
part that a lower source writes as a bare name is its `name` where a higher one adds keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from agentrl.config.paths import from_folder
from agentrl.config.syntax import parse_document
from agentrl.config.written import Written
from agentrl.environ import PREFIX, RESERVED
from agentrl.errors import ConfigError, near_files

__all__ = ["Source", "command_line", "defaults", "environment", "file", "merged"]

Values = dict[str, Any]
Parse = Callable[[Sequence[str], str], Any]
"""From the names of a key and the text of its override to its value."""


class Source:
    """Nested values, and for each key the words that say where it was written."""

    def __init__(self, values: Values, places: Mapping[str, str], default_place: str) -> None:
        self.values = values
        self._places = places
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
        return next((self._places[key] for key in held if key in self._places), self._default_place)


def command_line(overrides: Iterable[str], parse: Parse) -> Source:
    """``key.sub=value`` arguments, the last one winning. Raises ``ConfigError`` for one of another form."""
    values: Values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"{override!r} sets nothing", fix="write key.sub=value, as in training.steps=100")
        _assign(values, names, _value(parse, names, text, f"command line: {key.strip()}"))
    return Source(values, {}, "command line")


def environment(environ: Mapping[str, str], parse: Parse) -> Source:
    """Variables such as ``AGENTRL_ROLLOUT__GROUP_SIZE``."""
    values: Values = {}
    places: dict[str, str] = {}
    variables = [name for name in environ if name.startswith(PREFIX) and name not in RESERVED]
    for variable in sorted(variables, key=len):
        names = variable.removeprefix(PREFIX).lower().split("__")
        place = f"environment {variable}"
        _assign(values, names, _value(parse, names, environ[variable], place))
        places[".".join(names)] = place
    return Source(values, places, "environment")


def file(path: Path) -> Source:
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
    places = {key: f"file {path}:{line}" for key, line in document.lines.items()}
    return Source(from_folder(document.values, path.parent), places, f"file {path}")


def defaults(values: Values) -> Source:
    """What holds where nobody says otherwise."""
    return Source(values, {}, "default")


def merged(sources: Sequence[Source]) -> Values:
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
    """One source, as pydantic-settings merges it below those before it."""

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
    """Set the value at a path, making mappings on the way; a bare name there becomes a part's ``name``."""
    *parents, last = names
    for name in parents:
        held = values.get(name)
        values[name] = held if isinstance(held, dict) else {"name": held} if _is_name(held) else {}
        values = values[name]
    values[last] = value


def _is_name(value: Any) -> bool:
    """Whether a value may be the name of a part: text, or what was written as text might be."""
    return isinstance(value, str) or (isinstance(value, Written) and value.value is not None)


def _value(parse: Parse, names: Sequence[str], text: str, place: str) -> Any:
    try:
        return parse(names, text)
    except ConfigError as error:
        raise ConfigError(
            f"{place}: {error.message}", fix="quote text that begins with a bracket or a quote"
        ) from error
