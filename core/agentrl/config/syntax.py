"""YAML as the configuration reads and writes it, by ruamel.yaml.

Scalars are those of YAML 1.2's core schema: `1e-4` is a number, `010` is ten, `0o10` and `0x8` are eight, while `no`,
`on`, `1_000` and `2026-11-24` are text. Only plain data is read, and a key that a mapping holds twice is an error. A
scalar that is read as something else than text keeps the text that it was written as, for keys that hold text: see
``Written``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from agentrl.config.section import Written
from agentrl.errors import ConfigError, one_line

__all__ = ["Document", "parse_document", "parse_text", "parse_value", "to_yaml"]

_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
"""Plain scalars that are not text (YAML 1.2.2, 10.3.2), and the merge key: the pattern, and its first characters."""

_VALUES = {_TAG + name for name in ("null", "bool", "int", "float")}
_DATA = {None, *_VALUES, *(_TAG + name for name in ("str", "seq", "map"))}
_WIDTH = 120


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The core schema as ruamel.yaml looks scalars up: by their first character."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, (pattern, firsts) in _CORE_SCHEMA.items():
        for first in [*firsts, ""] if name == "null" else firsts:
            table.setdefault(first, []).append((_TAG + name, re.compile(f"(?:{pattern})$")))
    return table


class _Resolver(VersionedResolver):
    """The core schema to the letter: ruamel's own table keeps `1_000`, `0b1` and dates of YAML 1.1."""

    versioned_resolver = _resolvers()


class _KeyError(MarkedYAMLError):
    """What is YAML, and has keys that no configuration can have."""


class _Constructor(SafeConstructor):
    """Builds plain data, with a ``Written`` for every scalar that is not text."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep=deep)
        return Written(node.value, value) if isinstance(node, ScalarNode) and node.tag in _VALUES else value

    def check_mapping_key(self, node: Node, key_node: Node, mapping: Any, key: Any, value: Any) -> bool:
        """The library's error names the line of the second key; this one names both."""
        if key in mapping:
            first = next(each for each, _ in node.value if each.value == key_node.value)
            raise _KeyError(
                problem=f"{key!r} is there twice, first in line {first.start_mark.line + 1}",
                problem_mark=key_node.start_mark,
            )
        return True


_Constructor.yaml_constructors = {tag: make for tag, make in SafeConstructor.yaml_constructors.items() if tag in _DATA}


class _Representer(SafeRepresenter):
    """Writes plain data, and a ``Written`` as its text."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> ScalarNode:
        """Unprintable characters and line breaks other than a newline are preserved in double quotes alone."""
        return self.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')

    def represent_written(self, written: Written) -> Node:
        if isinstance(written.value, list):
            node: Node = self.represent_data(written.value)
            return node
        return self.represent_scalar(self.represent_data(written.value).tag, written.text)


_Representer.add_representer(str, _Representer.represent_text)
_Representer.add_representer(Written, _Representer.represent_written)


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML file holds, and where."""

    values: Any
    lines: dict[str, int]
    """The line of each key, by its dotted name, counted from 1."""


def parse_document(text: str, name: str) -> Document:
    """Read the YAML file called ``name``, whose text is ``text``. Raises ``ConfigError`` with the line at fault."""
    try:
        return _read(text)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"file {name}{_line(error)}: {_problem(error)}") from error


def parse_value(text: str) -> Any:
    """The value that ``text`` has in an override: a scalar, or YAML where it begins with a bracket or a quote.

    Raises ``ConfigError`` for a bracket or a quote that is not closed.
    """
    text = text.strip()
    try:
        if not text.startswith(("[", "{", '"', "'")):
            return _scalar(text)
        values = _read(text).values
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{text} is {_problem(error)}", fix="quote it as a whole to make it text") from error
    return Written(text, values) if isinstance(values, list) else values


def parse_text(text: str, *, short: bool) -> Any:
    """The value that ``text`` has in an override of a key that holds text: itself, less quotes around the whole.

    With ``short`` the text is the name of something that has other keys, and a mapping may stand in its place.
    Raises as ``parse_value`` does.
    """
    text = text.strip()
    if text.startswith(('"', "'")) or (short and text.startswith("{")):
        return parse_value(text)
    return _scalar(text)


def to_yaml(values: Any) -> str:
    """``values`` as YAML that ``parse_document`` reads back equal."""
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # Declared as its default, None.
    yaml.width = _WIDTH
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Constructor, yaml.Representer = _Resolver, _Constructor, _Representer
    return yaml


def _read(text: str) -> Document:
    yaml = _yaml()
    node = yaml.compose(text)
    if node is None:
        return Document({}, {})
    lines = dict(_lines(node, (), ()))
    return Document(yaml.constructor.construct_document(node), lines)


def _scalar(text: str) -> Any:
    """The value of a plain scalar, whatever stands in it that YAML would read as a comment or a key."""
    yaml = _yaml()
    tag: Tag = yaml.resolver.resolve(ScalarNode, text, (True, False))
    return yaml.constructor.construct_object(ScalarNode(tag, text)) if str(tag) in _VALUES else text


def _lines(node: Node, path: tuple[str, ...], within: tuple[Node, ...]) -> Iterator[tuple[str, int]]:
    """The lines of the keys below ``node``; one that is not text is an error."""
    if not isinstance(node, MappingNode) or node in within:
        return
    for key, value in node.value:
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            raise _KeyError(problem="a key is not text: quote it", problem_mark=key.start_mark)
        here = (*path, str(key.value))
        yield ".".join(here), key.start_mark.line + 1
        yield from _lines(value, here, (*within, node))


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _problem(error: Exception) -> str:
    problem = one_line(getattr(error, "problem", None) or error)
    return problem if isinstance(error, _KeyError) else f"not YAML: {problem}"
