"""YAML as the configuration reads and writes it.

Scalars are those of YAML 1.2: `3e-4` is a number; `no`, `on` and `2026-11-24` are text, and so are digits
after a leading zero. Only plain data is read, and a key that a mapping holds twice is an error. What reads as
something else than text keeps the text that it was written as, for keys that hold text: see ``Written``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode

from agentrl.config.models import Written
from agentrl.errors import ConfigError, one_line

__all__ = ["Document", "parse_document", "parse_text", "parse_value", "to_yaml"]

_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"0|-?[1-9][0-9]*", "-0123456789"),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+([eE][-+]?[0-9]+)?|\.inf)|\.nan",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
"""Plain scalars that are not text: their pattern, and the characters that they begin with."""

_TAG = "tag:yaml.org,2002:"
_KEYS = {_TAG + "str", _TAG + "merge"}
_RETYPED = {_TAG + name for name in ("null", "bool", "int", "float")}
_DATA = {None, *_RETYPED, *(_TAG + name for name in ("str", "seq", "map"))}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The table in the form that PyYAML looks scalars up in."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, (pattern, firsts) in _SCALARS.items():
        for first in [*firsts, ""] if name == "null" else firsts:
            table.setdefault(first, []).append((_TAG + name, re.compile(f"(?:{pattern})$")))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag in _DATA
    }

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in _KEYS:
                raise MarkedYAMLError(problem="a key is not text: quote it", problem_mark=key.start_mark)
            if key.value in seen:
                raise MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep=deep)
        return Written(node.value, value) if isinstance(node, ScalarNode) and node.tag in _RETYPED else value


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> ScalarNode:
        """Line breaks other than a newline survive between double quotes alone."""
        return self.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')

    def represent_written(self, written: Written) -> Node:
        """What was written, as it was written."""
        if isinstance(written.value, list):
            node: Node = self.represent_data(written.value)
            return node
        return self.represent_scalar(self.represent_data(written.value).tag, written.text)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(Written, _Dumper.represent_written)


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML file holds, and where."""

    values: Any
    lines: dict[str, int]
    """The line of each key, by its dotted name."""


def parse_document(text: str, name: str) -> Document:
    """Read YAML; ``name`` is that of its file. Raises ``ConfigError`` with the line at fault."""
    try:
        return _read(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}{_position(error)} is not YAML: {_problem(error)}") from error


def parse_value(text: str) -> Any:
    """The value that ``text`` has in an override: a scalar, or YAML where it begins with a bracket or a quote.

    Raises ``ConfigError`` for a bracket or a quote that is not closed.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return _scalar(text)
    try:
        values = _read(text).values
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{text} is not YAML: {_problem(error)}", fix="quote it as a whole to make it text"
        ) from error
    return Written(text, values) if isinstance(values, list) else values


def parse_text(text: str, *, short: bool) -> Any:
    """The value that ``text`` has in an override of a key that holds text: itself, less quotes around the whole.

    With ``short`` the text is the name of something that has other keys, and a mapping may stand in its place.
    """
    text = text.strip()
    if text.startswith(('"', "'")) or (short and text.startswith("{")):
        return parse_value(text)
    return _scalar(text)


def to_yaml(values: Any) -> str:
    """``values`` as YAML that ``parse_document`` reads back equal."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _read(text: str) -> Document:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Document({}, {})
        lines = dict(_lines(node, (), ()))
        return Document(loader.construct_document(node), lines)
    finally:
        loader.dispose()


def _scalar(text: str) -> Any:
    loader = _Loader("")
    resolve: Callable[..., str] = loader.resolve
    tag = resolve(ScalarNode, text, (True, False))
    return loader.construct_object(ScalarNode(tag, text)) if tag in _RETYPED else text


def _lines(node: Node, path: tuple[str, ...], within: tuple[Node, ...]) -> Iterator[tuple[str, int]]:
    if not isinstance(node, MappingNode) or node in within:
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        yield ".".join(here), key.start_mark.line + 1
        yield from _lines(value, here, (*within, node))


def _position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" line {mark.line + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return one_line(getattr(error, "problem", None) or error)
