"""JSON schemas in requests: checked before anything is sampled, so that an error says what is wrong and where."""

from __future__ import annotations

import json
import re
from typing import Any

from agentrl.errors import shown
from agentrl.gateway.dialects.refusals import unsupported, wrong
from agentrl.inference.contract import Grammar

__all__ = ["check_schema", "read_format"]

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DEPTH = 100


def check_schema(schema: Any, where: str, depth: int = 0) -> None:
    """Raise ``GatewayError`` (400), naming the part at fault, for what is no JSON schema. Unknown keywords may be."""
    if not isinstance(schema, dict):
        raise wrong(where, f"is no JSON schema: {shown(schema, 80)}")
    if depth > _DEPTH:
        raise wrong(where, f"is nested over {_DEPTH} schemas deep")
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise wrong(f"{where}.type", f"is {shown(kind, 80)}", fix="one of " + ", ".join(_TYPES))
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise wrong(f"{where}.required", f"is no list of names: {shown(required, 80)}")
    if not isinstance(schema.get("enum", []), list):
        raise wrong(f"{where}.enum", f"is no list: {shown(schema['enum'], 80)}")
    if not isinstance(schema.get("$ref", ""), str):
        raise wrong(f"{where}.$ref", f"is not a text: {shown(schema['$ref'], 80)}")
    for name in _BY_NAME:
        by_name = schema.get(name, {})
        if not isinstance(by_name, dict):
            raise wrong(f"{where}.{name}", f"is not an object: {shown(by_name, 80)}")
        for key, part in by_name.items():
            _check_part(part, f"{where}.{name}.{key}", depth)
    for name in _OF_SCHEMAS:
        parts = schema.get(name, [])
        if not isinstance(parts, list):
            raise wrong(f"{where}.{name}", f"is no list of schemas: {shown(parts, 80)}")
        for index, part in enumerate(parts):
            _check_part(part, f"{where}.{name}[{index}]", depth)
    for name in _SCHEMAS:
        if name in schema:
            _check_part(schema[name], f"{where}.{name}", depth)


def _check_part(schema: Any, where: str, depth: int) -> None:
    if not isinstance(schema, bool):  # True allows anything, and False nothing.
        check_schema(schema, where, depth + 1)


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
