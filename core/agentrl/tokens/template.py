"""A model's chat template: the Jinja program, shipped with the tokenizer, that writes a conversation as text.

Every other way of rendering is measured against it. ``ChatTemplate`` renders with the environment that Hugging Face
uses, except that the date is the caller's: ``apply_chat_template`` tells a template the real date at every call.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from agentrl.errors import ConfigError, GatewayError, one_line

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["ChatTemplate", "Form", "Message", "Messages", "Tools", "plain", "text_of", "thinking_of"]

Message = dict[str, Any]
"""One message as the OpenAI chat API writes it, in plain JSON values."""

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]
"""Tool definitions as the OpenAI chat API writes them."""


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's content as one string; the text parts of a list are joined, and no content is ``""``."""
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


def thinking_of(message: Mapping[str, Any]) -> str:
    """Return the thinking of an assistant message: its ``reasoning_content``, else what ``<think>`` marks hold.

    The result is stripped. It is empty for a message without thinking and for every other role.
    """
    if message["role"] != "assistant":
        return ""
    given = message.get("reasoning_content")
    if not given:
        before, mark, _ = text_of(message).rpartition("</think>")
        given = before.rpartition("<think>")[2] if mark else ""
    return str(given).strip()


@dataclass(frozen=True, slots=True)
class Form:
    """How messages are passed to a template, where the API allows several forms. Most templates take the default."""

    arguments: Literal["object", "text"] = "object"
    """Whether tool arguments are passed as parsed objects, or as JSON text to templates that print them unchanged."""
    empty_content: Literal[""] | None = ""
    """The content of a turn that only calls tools; some templates test it for ``None``."""
    thinking: str = "reasoning_content"
    """The key under which the template looks for a turn's thinking."""
    short_ids: bool = False
    """Whether the template requires tool call ids of nine letters and digits."""
    parts: bool = False
    """Whether content is passed as a list of parts; templates of some vision models write nothing else."""

    def put(self, message: Mapping[str, Any]) -> Message:
        """Return the message as the template takes it. Tool arguments that are not a JSON object stay text."""
        role = "system" if message["role"] == "developer" else message["role"]
        given = {key: value for key, value in message.items() if value is not None}
        put: Message = {**given, "role": role, "content": text_of(message)}
        if calls := message.get("tool_calls"):
            put["tool_calls"] = [self._call(call) for call in calls]
            put["content"] = put["content"] or self.empty_content
        else:
            put.pop("tool_calls", None)
        if self.thinking != "reasoning_content" and put.get("reasoning_content"):
            put[self.thinking] = put.pop("reasoning_content")
        if self.short_ids and isinstance(message.get("tool_call_id"), str):
            put["tool_call_id"] = _short_id(message["tool_call_id"])
        if self.parts and put["content"]:
            put["content"] = [{"type": "text", "text": put["content"]}]
        return put

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        put = {**call, "function": self._function(call["function"])}
        if self.short_ids and isinstance(call.get("id"), str):
            put["id"] = _short_id(call["id"])
        return put

    def _function(self, function: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.arguments == "text":
            return function
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return function
        return {**function, "arguments": arguments} if isinstance(arguments, dict) else function


_DEFAULT_FORM = Form()


def plain(message: Mapping[str, Any]) -> Message:
    """Return the message in the default form: content as a string, tool arguments as an object where they parse."""
    return _DEFAULT_FORM.put(message)


_SHORT_ID = 9


def _short_id(call_id: str) -> str:
    """Nine letters and digits derived from ``call_id``; an id that already has this shape is kept."""
    if len(call_id) == _SHORT_ID and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:_SHORT_ID]


class ChatTemplate:
    """Renders whole conversations with the tokenizer's Jinja template, all of them with the same date."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        origin: str,
        day: date | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """``origin`` names the model in messages; ``day`` is the date that the template sees, today by default.

        ``variables`` are further variables for the template, such as ``enable_thinking``.

        Raises ``ConfigError`` where the tokenizer has no template or its template is not valid Jinja.
        """
        if not vocabulary.chat_template:
            raise ConfigError(
                f"the tokenizer of {origin} has no chat template",
                fix="use an instruction-tuned model, put a chat_template.jinja beside its tokenizer.json, or name a "
                "template's file with model.chat_template",
            )
        self.vocabulary = vocabulary
        self.variables = dict(variables or {})
        """Further variables that the template sees."""
        self.day = day or date.today()
        """The date that the template sees."""
        self.form = Form()
        """The form in which messages are passed to the template."""
        self._check(origin)
        self.form = _fitting_form(lambda messages: self._text(messages, None, prompt=False))

    @property
    def writes_date(self) -> bool:
        """Whether the rendered text depends on the date."""
        asked = [{"role": "user", "content": "Hi"}]
        try:
            return self._text(asked, None, self.day) != self._text(asked, None, self.day + timedelta(days=400))
        except GatewayError:  # A template that refuses this message is reported when an agent's messages are rendered.
            return False

    @property
    def reads(self) -> frozenset[str]:
        """The names of the variables that the template looks up and that a request may set."""
        tools = [{"type": "function", "function": {"name": "f"}}]
        sources = {self.vocabulary.get_chat_template(None, offered) for offered in (None, tools)}
        read = frozenset[str]().union(*map(_read_by, sources))
        return read - _OWN - frozenset(self.vocabulary.special_tokens_map)

    def text(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> str:
        """Return the conversation as text, with the header of the next assistant turn if ``prompt``.

        Raises ``GatewayError`` (400) where the template refuses the messages.
        """
        return self._text([self.form.put(message) for message in messages], tools, prompt=prompt)

    def render(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> list[int]:
        """Return the token ids of ``text``. Raises what ``text`` raises."""
        return self.vocabulary.encode(self.text(messages, tools, prompt=prompt))

    def up_to_end(self, ids: list[int]) -> list[int]:
        """Return the ids of a turn up to its last special token, which ends it, or all ids where there is none."""
        last = max((n for n, token in enumerate(ids) if token in self.vocabulary.special_ids), default=len(ids) - 1)
        return ids[: last + 1]

    def _text(self, messages: Messages, tools: Tools | None, day: date | None = None, *, prompt: bool = True) -> str:
        from jinja2 import TemplateError

        named = {**self.vocabulary.special_tokens_map, **self.variables}  # The former are such as ``bos_token``.
        try:
            return _compiled(self.vocabulary.get_chat_template(None, tools)).render(
                named,
                messages=[dict(message) for message in messages],
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=prompt,
                strftime_now=datetime.combine(day or self.day, time()).strftime,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise GatewayError(
                f"the model's chat template refuses these messages: {error}", code="invalid_messages", param="messages"
            ) from error

    def _check(self, origin: str) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            self._text([{"role": "user", "content": "Hi"}], None)
        except GatewayError as error:
            if isinstance(syntax := error.__cause__, TemplateSyntaxError):
                raise ConfigError(
                    f"the chat template of {origin} cannot be read: line {syntax.lineno}: {one_line(syntax)}",
                    fix="mend it, or name another file with model.chat_template",
                ) from error


_OWN = frozenset(
    {"messages", "tools", "add_generation_prompt", "strftime_now", "raise_exception"}
    | {f"{special}_token" for special in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
)
"""What a template is given that no request may set by these names."""


@lru_cache(16)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


def _read_by(template: str) -> frozenset[str]:
    """The names that a template looks up and is to be given, without those that every template knows.

    A name that the template sets by itself is one only where it asks whether it was given.
    """
    from jinja2 import nodes
    from jinja2.meta import find_undeclared_variables

    environment = _environment()
    tree = environment.parse(template)
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    asked: set[str] = set()
    for question in tree.find_all((nodes.Test, nodes.Filter)):
        if question.name in ("defined", "undefined", "default", "d") and isinstance(question.node, nodes.Name):
            asked.add(question.node.name)
    return frozenset(find_undeclared_variables(tree)) - (own - asked) - environment.globals.keys()


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the model's own text for training by masks; it changes nothing in the output."""

        tags = {"generation"}  # noqa: RUF012  # jinja2 declares its tags so.

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as in transformers; jinja2's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


_Text = Callable[[Sequence[Message]], str]
"""Renders messages to text. Raises ``GatewayError`` where the template refuses them."""

_NAME, _KEY, _VALUE, _RESULT, _THOUGHT = (
    "probe_name_q1",
    "probe_key_q2",
    "probe value q3",
    "probe result q4",
    "q5 probe",
)
_ASK: Message = {"role": "user", "content": "What is it?"}


def _fitting_form(text: _Text) -> Form:
    """The first form in which most of a conversation with a tool call and its result reaches the text."""
    parts = not _shows_question(text, Form()) and _shows_question(text, Form(parts=True))
    forms = [
        Form(arguments=arguments, empty_content=empty, short_ids=short, parts=parts)
        for short, arguments, empty in itertools.product((False, True), _ARGUMENTS, _EMPTY)
    ]
    best = max(forms, key=lambda form: _shown_parts(text, form))
    if _shows_thinking(text, "thinking") and not _shows_thinking(text, "reasoning_content"):
        return replace(best, thinking="thinking")
    return best


_ARGUMENTS: tuple[Literal["object", "text"], ...] = ("object", "text")
_EMPTY: tuple[Literal[""] | None, ...] = ("", None)


def _shows_question(text: _Text, form: Form) -> bool:
    try:
        return str(_ASK["content"]) in text([form.put(_ASK)])
    except GatewayError:
        return False


def _shown_parts(text: _Text, form: Form) -> tuple[int, bool]:
    """How many parts of a call and its result are in the text, and whether the arguments are printed as JSON."""
    arguments = json.dumps({_KEY: _VALUE})
    function = {"name": _NAME, "arguments": arguments}
    call = {"id": "call_0", "type": "function", "function": function}
    turn: Message = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_0", "name": _NAME, "content": _RESULT}
    try:
        written = text([form.put(message) for message in (_ASK, turn, result)])
    except GatewayError:
        return -1, False
    quoted = f"'{_KEY}'" in written or f'\\"{_KEY}' in written  # A Python dict, or JSON inside a JSON string.
    return sum(part in written for part in (_NAME, _KEY, _VALUE, _RESULT)), not quoted


def _shows_thinking(text: _Text, key: str) -> bool:
    try:
        return _THOUGHT in text([_ASK, {"role": "assistant", "content": "It is.", key: _THOUGHT}])
    except GatewayError:
        return False
