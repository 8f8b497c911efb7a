"""JSON schemas in requests: checked before anything is sampled, so that an error says what is wrong and where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.errors import shown
from agentrl.gateway.dialects.refusals import unsupported, wrong
from agentrl.inference.contract import Grammar

__all__ = ["check_schema", "read_format"]

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DEPTH = 100


def check_schema(schema: Any, where: str, depth: int = 0) -> None:
    """Raise ``GatewayError`` (400), naming the part at fault, for what is no JSON schema. Unknown keywords may be."""
    if not isinstance(schema, dict):
        raise wrong(where, f"is no JSON schema: {shown(schema, 80)}")
    if depth > _DEPTH:
        raise wrong(where, f"is nested over {_DEPTH} schemas deep")
    for name, value in schema.items():
        if (check := _CHECKS.get(name)) is not None:  # By what is there: a schema has few of the keywords.
            check(value, f"{where}.{name}", depth)


def _check_type(value: Any, where: str, depth: int) -> None:
    for kind in value if isinstance(value, list) else (value,):
        if not isinstance(kind, str) or kind not in _TYPES:
            raise wrong(where, f"is {shown(kind, 80)}", fix="one of " + ", ".join(_TYPES))


def _check_names(value: Any, where: str, depth: int) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong(where, f"is no list of names: {shown(value, 80)}")


def _check_list(value: Any, where: str, depth: int) -> None:
    if not isinstance(value, list):
        raise wrong(where, f"is no list: {shown(value, 80)}")


def _check_text(value: Any, where: str, depth: int) -> None:
    if not isinstance(value, str):
        raise wrong(where, f"is not a text: {shown(value, 80)}")


def _check_by_name(value: Any, where: str, depth: int) -> None:
    if not isinstance(value, dict):
        raise wrong(where, f"is not an object: {shown(value, 80)}")
    for name, schema in value.items():
        _check_part(schema, f"{where}.{name}", depth)


def _check_several(value: Any, where: str, depth: int) -> None:
    if not isinstance(value, list):
        raise wrong(where, f"is no list of schemas: {shown(value, 80)}")
    for index, schema in enumerate(value):
        _check_part(schema, f"{where}[{index}]", depth)


def _check_part(schema: Any, where: str, depth: int) -> None:
    if not isinstance(schema, bool):  # True allows anything, and False nothing.
        check_schema(schema, where, depth + 1)


_CHECKS: Mapping[str, Callable[[Any, str, int], None]] = {
    "type": _check_type,
    "required": _check_names,
    "enum": _check_list,
    "$ref": _check_text,
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _check_by_name),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), _check_several),
    **dict.fromkeys(("items", "additionalProperties", "not", "if", "then", "else"), _check_part),
    **dict.fromkeys(("contains", "propertyNames"), _check_part),
}
"""What a keyword's value must be."""


def read_format(value: Any, where: str = "response_format") -> Grammar | None:
    """The form that the answer must have; ``None`` where it is text. Raises ``GatewayError`` (400).

    Takes ``response_format`` of the chat completions API, and ``text.format`` of the Responses API, in which the schema
    is not below a key of its own.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_object")
    if kind != "json_schema":
        fix = f"one of text, json_object and json_schema; or set rollout.override: {{{where.split('.')[0]}: null}}"
        raise unsupported(where, value, "is no form of an answer", fix=fix)
    given, at = (value["json_schema"], f"{where}.json_schema") if "json_schema" in value else (value, where)
    if not isinstance(given, dict):
        raise wrong(at, f"is not an object: {shown(given, 80)}")
    name = given.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong(f"{at}.name", f"is {shown(name, 80)}", fix="up to 64 letters, digits, _ and -")
    if not isinstance(given.get("strict"), bool | None):
        raise wrong(f"{at}.strict", f"is neither true nor false: {shown(given['strict'], 80)}")
    if "schema" not in given:
        raise wrong(f"{at}.schema", "is missing", fix="for any JSON object ask for the type json_object")
    check_schema(given["schema"], f"{at}.schema")
    return Grammar("json_schema", json.dumps(given["schema"], ensure_ascii=False))
