"""Chat templates compiled as Hugging Face templates are, on a day of the caller's choice.

``apply_chat_template`` tells a template the real date at every call, and drops a content that is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["TemplateError", "TemplateSyntaxError", "rendered"]


def rendered(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    prompt: bool,
    day: date,
    tokens: Mapping[str, str],
) -> str:
    """What ``template`` writes; ``tokens`` are the tokenizer's named ones, such as ``bos_token``.

    Raises ``jinja2.TemplateError`` or what the template's expressions raise.
    """
    named: dict[str, Any] = dict(tokens)
    return _compiled(template).render(
        named,
        messages=[dict(message) for message in messages],
        tools=list(tools) if tools else None,
        documents=None,
        add_generation_prompt=prompt,
        strftime_now=datetime.combine(day, time()).strftime,
    )


@lru_cache(16)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment.from_string(template)


class _Generation(Extension):
    """``{% generation %}`` marks what the model writes, for training by masks: here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own way to declare them

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face templates have it: nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
