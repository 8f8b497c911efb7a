"""Which ids end a turn of the assistant: those that the model's files list, and what its template writes after one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, GatewayError, shown
from agentrl.tokens.template import ChatTemplate
from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["end_ids", "written_ends"]

_FILES = ("generation_config.json", "config.json")
_TEXT, _VALUE = "sentinel of a text q7", "sentinel of a value q8"
_ASK = {"role": "user", "content": "Hi"}
_ANSWER = {"role": "assistant", "content": _TEXT}


def end_ids(vocabulary: Vocabulary, template: ChatTemplate | None) -> frozenset[int]:
    """Every id that ends a turn: the tokenizer's, those that its folder's files list, and what ``template`` writes.

    Raises ``ConfigError`` for a file that lists none that could be.
    """
    own = frozenset() if vocabulary.eos_token_id is None else frozenset({vocabulary.eos_token_id})
    written = frozenset[int]() if template is None else written_ends(vocabulary, template)
    return own | _listed(vocabulary) | written


def _listed(vocabulary: Vocabulary) -> frozenset[int]:
    """``eos_token_id`` of the files beside a tokenizer that was loaded from a folder."""
    if not vocabulary.name_or_path:
        return frozenset()
    files = [file for name in _FILES if (file := Path(str(vocabulary.name_or_path)) / name).is_file()]
    known = len(vocabulary.get_vocab())
    found = (end for file in files for end in _eos_of(file))
    return frozenset(end for end in found if end < known)  # Nobody can sample what has no token.


def _eos_of(file: Path) -> Sequence[int]:
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", fix="save the model's own file there") from error
    ends = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
        raise ConfigError(f"{file}: eos_token_id is {shown(value, 80)}, no id and no list of them", fix="mend the file")
    return ends


def written_ends(vocabulary: Vocabulary, template: ChatTemplate) -> frozenset[int]:
    """The ids with which ``template`` itself ends a turn of text, and one of tool calls."""
    return frozenset(_after_text(vocabulary, template) + _after_calls(vocabulary, template))


def _after_text(vocabulary: Vocabulary, template: ChatTemplate) -> list[int]:
    """The first token of its own that the template writes after the conversation's last text.

    In the middle of a conversation it may write another, which the policy never does (gpt-oss); but where it
    writes none at the end, the next turn's header ends this one (GLM).
    """
    tokens = vocabulary.added_tokens_decoder
    ids = vocabulary.encode(_tail(template, [_ANSWER], _TEXT))
    if ends := [token for token in ids if token in tokens]:
        return ends[:1]
    ids = vocabulary.encode(_tail(template, [_ANSWER, _ASK], _TEXT).lstrip())
    return [token for token in ids[:1] if token in tokens]


def _after_calls(vocabulary: Vocabulary, template: ChatTemplate) -> list[int]:
    """The last special token that the template writes after tool calls, unless every call has one.

    Where it writes none, that of the results' header.
    """
    for count in (2, 1):
        calls = _calls(count)
        if tail := _special(vocabulary, _tail(template, [calls], _VALUE)):
            opening = _special(vocabulary, _written(template, [], prompt=True))
            whole = _special(vocabulary, _written(template, [calls]))
            return tail[-1:] if whole.count(tail[-1]) - opening.count(tail[-1]) == 1 else []
        if tail := _special(vocabulary, _tail(template, [calls, *_results(count)], _VALUE)):
            return tail[:1]
    return []


def _special(vocabulary: Vocabulary, text: str) -> list[int]:
    return [token for token in vocabulary.encode(text) if token in vocabulary.special_ids]


def _calls(count: int) -> dict[str, Any]:
    function = {"name": "look", "arguments": json.dumps({"at": _VALUE})}
    calls = [{"id": f"call_{n}", "type": "function", "function": function} for n in range(count)]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _results(count: int) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": f"call_{n}", "name": "look", "content": "7"} for n in range(count)]


def _tail(template: ChatTemplate, turns: Sequence[dict[str, Any]], sentinel: str) -> str:
    """What the template writes after ``sentinel``; nothing where that does not reach it."""
    return _written(template, turns).rpartition(sentinel)[2] if sentinel in _written(template, turns) else ""


def _written(template: ChatTemplate, turns: Sequence[dict[str, Any]], *, prompt: bool = False) -> str:
    try:
        return template.text([_ASK, *turns], prompt=prompt)
    except GatewayError:
        return ""
