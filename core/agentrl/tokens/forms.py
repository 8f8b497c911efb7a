"""What a completion of one model can be made to look like: forced tool calls, arguments that follow a schema, formats.

A model's own form of a tool call is learned from what its chat template writes around names and arguments. The result
is a grammar in the form of xgrammar's structural tags, in which a token that marks structure is named by its id, so
that it is sampled as the token that parsers look for, and not spelled out. Thinking comes first, as free as ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agentrl.errors import GatewayError, shown
from agentrl.inference.contract import Grammar

if TYPE_CHECKING:
    from agentrl.tokens.renderer import Thinking
    from agentrl.tokens.template import Message, Tools
    from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["CallForm", "Forms", "Text", "call_form"]

_Format = dict[str, Any]
"""A format of a structural tag."""
_Marks = Sequence[tuple[str, str]]
"""Between what thinking may be written: what opens it, and what closes it."""

_SPACE = 16
"""White space between two parts of JSON, at most; as in schemas without a tag around them."""
_SOME_SPACE: _Format = {"type": "regex", "pattern": r"[ \n]{0,2}"}
_HARMONY = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
"""Between what gpt-oss writes its thinking."""

Text = Callable[..., str]
"""Renders messages and tools to text, with the header of the next turn if ``prompt``. Raises ``GatewayError``."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """What a template writes around the tool calls of a turn. Arguments are JSON, or as ``style`` says."""

    opening: str
    """Before the name of the first call, without white space at its beginning."""
    between: str
    """Between a name and its arguments."""
    separator: str | None
    """Between the arguments of a call and the name of the next; ``None`` where a turn has one call."""
    closing: str
    """After the arguments of the last call."""
    lead: str = ""
    """White space before ``opening`` where no thinking precedes it."""
    style: str = "json"
    """How arguments are written, by xgrammar's names."""


class Forms:
    """Makes grammars for completions of one model. Safe to use from any thread."""

    def __init__(
        self,
        text: Text,
        vocabulary: Vocabulary,
        thinking: Thinking,
        *,
        stop_ids: frozenset[int],
        origin: str = "the model",
    ) -> None:
        """``text`` is how the model's prompts are written, and ``origin`` names the model in messages."""
        self._text = text
        self._marks = thinking
        self._origin = origin
        self._stop_ids = sorted(stop_ids)
        self._ids = vocabulary.added_ids(str(vocabulary.chat_template or ""))
        self._spellings = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))) or r"(?!)")
        self._stops = {token for token, token_id in self._ids.items() if token_id in stop_ids}
        self._ends_calls = vocabulary.special_id("</tool_call>") is not None
        """Whether a completion can be ended by the token after its first call, without a grammar."""
        self._harmony = all(mark in self._ids for mark in ("<|channel|>", "<|message|>", "<|end|>", "<|start|>"))
        self._thoughts = (_HARMONY,) if self._harmony else thinking.known

    @cached_property
    def calls(self) -> CallForm | None:
        """How the model writes tool calls; ``None`` where that cannot be told."""
        return call_form(self._text, self._stops, self._thoughts)

    @cached_property
    def content(self) -> str:
        """What the model writes before the text of an answer that has no thinking."""
        return _before_content(self._text, self._thoughts)

    def grammar(
        self,
        prompt_ids: Sequence[int],
        tools: Tools | None = None,
        *,
        must_call: Sequence[str] = (),
        one_call: bool = False,
        content: Grammar | None = None,
    ) -> Grammar | None:
        """Return the grammar of a completion of ``prompt_ids``; ``None`` where nothing is asked of it.

        ``tools`` are those that may be called: the arguments of a strict one follow its schema, wherever a mask can
        tell that one is being called. One of ``must_call``
        is called if there are any. Without, the answer's text looks like ``content``, or there are calls in its place.
        With ``one_call`` there is at most one. Raises ``GatewayError`` (400) where the model's form of calls cannot
        be told, or ``content`` is no JSON.
        """
        offered = {tool["function"]["name"]: tool["function"] for tool in tools or ()}
        if must_call:
            called = [self._function(name, offered) for name in must_call]
            return self._tag(prompt_ids, [self._turn(self._known_form("tool_choice"), called, one_call)])
        if content is not None:
            return self._answer(prompt_ids, content, list(offered.values()), one_call)
        strict = any(function.get("strict") for function in offered.values())
        if (strict or (one_call and offered and not self._ends_calls)) and self.calls is not None:
            return self._free(prompt_ids, self.calls, list(offered.values()), one_call)
        return None

    def _function(self, name: str, offered: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        if name not in offered:
            raise GatewayError(
                f"tool_choice names {name!r}, which is not among the tools", param="tool_choice", code="invalid_value"
            )
        return offered[name]

    def _known_form(self, param: str) -> CallForm:
        if self.calls is None:
            raise GatewayError(
                f"{param} cannot be kept: how {self._origin} writes tool calls cannot be told from its chat template, "
                "or is no form that a grammar can follow",
                param=param,
                code="unsupported_value",
                fix=f"leave the choice to the policy with rollout.override: {{{param}: null}}",
            )
        return self.calls

    # What comes before

    def _tag(self, prompt_ids: Sequence[int], bodies: Sequence[tuple[str, _Format]]) -> Grammar:
        """One of ``bodies`` after the thinking that the prompt has opened, or that the model may begin with.

        A body comes with the white space before it where no thinking precedes.
        """
        after = _one_of([body for _, body in bodies])
        first = _one_of([_sequence([*self._literal(lead), body]) for lead, body in bodies])
        expected = self._thinking(prompt_ids)
        if expected is None:
            return _grammar(first)
        (opening, closing), opened = expected
        thought = [*self._until(closing), *self._literal(closing), _SOME_SPACE, after]
        if opened:
            return _grammar(_sequence(thought))
        return _grammar(_one_of([_sequence([*self._literal(opening), *thought]), first]))

    def _thinking(self, prompt_ids: Sequence[int]) -> tuple[tuple[str, str], bool] | None:
        if self._harmony:
            return _HARMONY, False
        return self._marks.expected(prompt_ids)

    def _until(self, mark: str) -> list[_Format]:
        """Any tokens, or any text, up to ``mark``."""
        first = self._spellings.match(mark)
        if first is None:
            return [{"type": "any_text", "excludes": [mark]}]
        return [{"type": "any_tokens", "exclude_tokens": [self._ids[first.group()], *self._stop_ids]}]

    def _literal(self, text: str) -> list[_Format]:
        """Exactly ``text``, in which what marks structure is its token."""
        formats: list[_Format] = []
        at = 0
        for match in self._spellings.finditer(text):
            formats += _constant(text[at : match.start()])
            formats.append({"type": "token", "token": self._ids[match.group()]})
            at = match.end()
        return formats + _constant(text[at:])

    # Calls

    def _turn(self, form: CallForm, functions: Sequence[Mapping[str, Any]], one_call: bool) -> tuple[str, _Format]:
        """A turn of tool calls, and the white space before it."""
        return form.lead, _sequence([*self._literal(form.opening), *self._calls(form, functions, one_call)])

    def _calls(self, form: CallForm, functions: Sequence[Mapping[str, Any]], one_call: bool) -> list[_Format]:
        """One or more calls, from the name of the first to the end of the last."""
        call = _one_of([self._call(form, function) for function in functions])
        more: list[_Format] = []
        if form.separator is not None and not one_call:
            more = [{"type": "star", "content": _sequence([*self._written(form.separator), call])}]
        return [call, *more, *self._written(form.closing)]

    def _call(self, form: CallForm, function: Mapping[str, Any]) -> _Format:
        named = self._literal(str(function["name"]) + form.between)
        return _sequence([*named, {**_json(_parameters(function)), "style": form.style}])

    def _written(self, text: str) -> list[_Format]:
        """``text`` as learned, in which an id of a call stands for any."""
        before, found, after = text.partition(_ID)
        if not found:
            return self._literal(text)
        anyone: _Format = {"type": "regex", "pattern": "[a-zA-Z0-9]{9}"}
        return [*self._literal(before), anyone, *self._written(after)]

    def _free(
        self, prompt_ids: Sequence[int], form: CallForm, functions: Sequence[Mapping[str, Any]], one_call: bool
    ) -> Grammar | None:
        """Any tokens, except that whatever begins like a call is one.

        ``None`` where a call begins with plain text in the middle of others, as gpt-oss's do: no mask tells it from
        them without forbidding more.
        """
        calls = self._calls(form, functions, one_call)
        first = self._spellings.match(form.opening)
        if first is not None:
            rest = _sequence([*self._literal(form.opening[first.end() :]), *calls])
            rules = [[self._ids[first.group()], rest]]
            free: _Format = {"type": "token_dispatch", "rules": rules, "loop": not one_call}
            return _grammar(self._open(prompt_ids, free))
        if form.opening[:1] not in ("{", "["):
            return None
        # A turn that begins like JSON is a call, whatever else it begins with is none.
        marks: list[_Format] = [
            {"type": "token", "token": token} for token in self._ids.values() if token not in self._stop_ids
        ]
        start = _one_of([{"type": "regex", "pattern": r"[^{\[]"}, *marks])
        turn = _sequence([*self._literal(form.opening), *calls])
        other = _sequence([start, {"type": "any_tokens"}])
        return self._tag(prompt_ids, [("", {"type": "optional", "content": _one_of([turn, other])})])

    def _open(self, prompt_ids: Sequence[int], free: _Format) -> _Format:
        """``free``, also after thinking in which no call begins. The thinking may end the completion, as it always may,
        so that nothing at all is forbidden before a call."""
        expected = self._thinking(prompt_ids)
        if expected is None:
            return free
        (opening, closing), opened = expected
        first = self._spellings.match(closing)
        if first is None:
            return free
        ended = _sequence([*self._literal(closing), free])
        thought: list[_Format] = [
            {"type": "any_tokens", "exclude_tokens": [self._ids[first.group()]]},
            {"type": "optional", "content": ended},
        ]
        return _sequence(thought) if opened else _one_of([_sequence([*self._literal(opening), *thought]), free])

    # Texts

    def _answer(
        self, prompt_ids: Sequence[int], content: Grammar, functions: Sequence[Mapping[str, Any]], one_call: bool
    ) -> Grammar:
        before = self.content
        lead = before[: len(before) - len(before.lstrip())]
        if not functions and not before and self._thinking(prompt_ids) is None:
            return content
        bodies = [(lead, _sequence([*self._literal(before.lstrip()), _content(content)]))]
        if functions:
            bodies.append(self._turn(self._known_form("response_format"), functions, one_call))
        return self._tag(prompt_ids, bodies)


def _grammar(form: _Format) -> Grammar:
    return Grammar("structural_tag", json.dumps({"type": "structural_tag", "format": form}))


def _constant(text: str) -> list[_Format]:
    return [{"type": "const_string", "value": text}] if text else []


def _sequence(elements: list[_Format]) -> _Format:
    return elements[0] if len(elements) == 1 else {"type": "sequence", "elements": elements}


def _one_of(elements: list[_Format]) -> _Format:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": elements}


def _json(schema: Any) -> _Format:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _SPACE}


def _parameters(function: Mapping[str, Any]) -> Any:
    """The schema of a tool's arguments: its own where it is strict, else that of any object."""
    if not function.get("strict"):
        return {"type": "object"}
    return function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}


def _content(grammar: Grammar) -> _Format:
    if grammar.kind == "regex":
        return {"type": "regex", "pattern": grammar.text}
    if grammar.kind == "json_object":
        return _json({"type": "object"})
    try:
        value = json.loads(grammar.text)
        return _json(value) if grammar.kind == "json_schema" else dict(value["format"])
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise GatewayError(
            f"response_format holds no {grammar.kind.replace('_', ' ')}: {shown(grammar.text, 120)}",
            param="response_format",
            code="invalid_value",
        ) from error


# Learning

_ID = "pr0becal1"
"""The id of calls in probes: nine letters and digits, which no template shortens."""
_NAMES = ("probe_name_k1", "probe_name_k2")
_ARGUMENTS = ({"probe_key": "probe value v1"}, {"probe_key": "probe value v2"})
_ANSWER = "probe answer w3"
_ASK: Message = {"role": "user", "content": "Hi"}


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"probe_key": {"type": "string"}}, "required": ["probe_key"]}
    return {"type": "function", "function": {"name": name, "description": "A probe.", "parameters": parameters}}


def _calling(count: int) -> Message:
    pairs = list(zip(_NAMES, _ARGUMENTS, strict=True))[:count]
    calls = [
        {"id": _ID, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for name, arguments in pairs
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def call_form(text: Text, stops: set[str], thoughts: _Marks) -> CallForm | None:
    """Return how tool calls are written by whatever renders ``text``; ``None`` where that cannot be told.

    ``stops`` are the tokens that end a turn, and ``thoughts`` the marks around thinking.
    """
    tools = [_tool(name) for name in _NAMES]
    one = _turn_of(text, _calling(1), tools, thoughts)
    parts = None if one is None else _split(one[1], 1)
    if one is None or parts is None:
        return None
    opening, between, rest, style = parts
    lead = "" if one[0] else opening[: len(opening) - len(opening.lstrip())]
    form = CallForm(opening.lstrip(), between, None, _up_to_stop(rest, stops), lead, style)
    if not form.opening and not form.between.strip():
        return None
    return replace(form, separator=_separator(text, tools, thoughts, form, stops))


def _separator(
    text: Text, tools: list[dict[str, Any]], thoughts: _Marks, form: CallForm, stops: set[str]
) -> str | None:
    """What is written between two calls, where all else is as it is with one."""
    two = _turn_of(text, _calling(2), tools, thoughts)
    first = None if two is None else _split(two[1], 1)
    second = None if first is None else _split(first[2], 2)
    if first is None or second is None:
        return None
    separator, between, rest, _ = second
    same = first[0].lstrip() == form.opening and first[1] == between == form.between
    return separator if same and _up_to_stop(rest, stops) == form.closing else None


def _split(text: str, number: int) -> tuple[str, str, str, str] | None:
    """The text before the name of call ``number``, between the name and the arguments, and after these; and the style
    of the arguments."""
    before, found, rest = text.partition(_NAMES[number - 1])
    if not found:
        return None
    arguments = _ARGUMENTS[number - 1]
    for start in (match.start() for match in re.finditer("{", rest)):
        try:
            value, end = json.JSONDecoder().raw_decode(rest, start)
        except ValueError:
            continue
        if value == arguments:
            return before, rest[:start], rest[end:], "json"
    tags = rf"<parameter=probe_key>\s*{re.escape(arguments['probe_key'])}\s*</parameter>"
    if match := re.search(tags, rest):
        return before, rest[: match.start()], rest[match.end() :], "qwen_xml"
    return None


def _up_to_stop(text: str, stops: set[str]) -> str:
    """What the model writes itself: up to the token that ends the turn, or to white space at the end of the text."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text.rstrip()


def _turn_of(
    text: Text, turn: Message, tools: list[dict[str, Any]] | None, thoughts: _Marks
) -> tuple[bool, str] | None:
    """A turn as it is written after its prompt, without thinking; and whether there was any. ``None`` if refused."""
    try:
        prompt = text([_ASK], tools)
        whole = text([_ASK, turn], tools, prompt=False)
    except GatewayError:
        return None
    written, opened = whole.removeprefix(prompt), False
    if written == whole:  # The prompt may open thinking that a turn of the past does not have.
        bare = prompt.rstrip()
        bare = next((bare.removesuffix(opening) for opening, _ in thoughts if bare.endswith(opening)), bare)
        if not whole.startswith(bare):
            return None
        written, opened = whole[len(bare) :], True
    for _, closing in thoughts:
        if closing in written:
            return True, written.partition(closing)[2]
    return opened, written


def _before_content(text: Text, thoughts: _Marks) -> str:
    turn = _turn_of(text, {"role": "assistant", "content": _ANSWER}, None, thoughts)
    if turn is None or _ANSWER not in turn[1]:
        return ""
    before = turn[1].partition(_ANSWER)[0]
    return before.lstrip() if turn[0] else before
