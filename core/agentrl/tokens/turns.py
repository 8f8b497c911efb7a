"""The turns of the assistant in a conversation that is given whole, as the policy would have sampled them.

A rollout never renders a turn of the policy: its ids are those that were sampled. Of a conversation that somebody else
has written there are only messages, and this module finds the ids: for each turn the prompt that the policy would have
been given there, and the completion that says what the turn says, thinking and tool calls included, up to the token
that ends the turn. A prompt extends the ids of the turn before it wherever a rollout's would, and is rendered in full
elsewhere, such as where the chat template drops earlier thinking.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agentrl.errors import GatewayError, shown
from agentrl.tokens.renderer import SEEN, Renderer
from agentrl.tokens.template import Message, Messages, Tools, text_of, thinking_of
from agentrl.tokens.vocabulary import MARK

__all__ = ["SpokenTurn", "spoken_turns"]


@dataclass(frozen=True, slots=True)
class SpokenTurn:
    """A turn of the assistant as token ids."""

    message: int
    """The index of its message in the conversation."""
    prompt_ids: Sequence[int]
    """What the policy is given, with the header of the turn."""
    completion_ids: Sequence[int]
    """What the policy says, with the id that ends the turn."""


def spoken_turns(renderer: Renderer, messages: Messages, tools: Tools | None = None) -> list[SpokenTurn]:
    """Return every turn of the assistant in ``messages``, in their order.

    Where the text of a turn spells out a token that would end it, the spelling is encoded as plain text. Raises
    ``GatewayError`` where the chat template refuses the messages or leaves out something that a turn says.
    """
    renderer.check(messages, tools)
    ends = _ends(renderer)
    spelled = [frozenset(ends) if message["role"] == "assistant" else frozenset[str]() for message in messages]
    marked, marked_tools = renderer.marked(messages, tools, spelled)
    turns: list[SpokenTurn] = []
    thinking = False
    for index, message in enumerate(marked):
        if message["role"] == "assistant":
            prompt_ids, extends = _prompt(renderer, marked[:index], marked_tools, turns, thinking=thinking)
            if not extends:
                thinking = any(map(thinking_of, marked[:index])) and renderer.thinks(prompt_ids)
            completion_ids = _completion(renderer, marked[: index + 1], marked_tools, prompt_ids, ends)
            thinking = thinking or renderer.thinks(completion_ids, prompt_ids)
            turns.append(SpokenTurn(index, prompt_ids, completion_ids))
    return turns


def _ends(renderer: Renderer) -> tuple[str, ...]:
    """The texts of the tokens that end a turn."""
    return tuple(filter(None, (renderer.vocabulary.decode([end]) for end in sorted(renderer.stop_ids))))


def _prompt(
    renderer: Renderer, messages: Sequence[Message], tools: Tools | None, turns: Sequence[SpokenTurn], *, thinking: bool
) -> tuple[Sequence[int], bool]:
    """The ids before a turn, and whether they extend those of the turn before it, as they do in a rollout."""
    if turns and not (thinking and not any(message["role"] == "user" for message in messages)):
        before = turns[-1]
        known = before.message + 1
        completion_ids = before.completion_ids[: renderer.history_length(before.completion_ids)]
        seen = before.prompt_ids[-SEEN:]
        extended = renderer.extend(
            seen, completion_ids, messages[known:], tools, thinking=thinking, history=messages[:known]
        )
        if not isinstance(extended, str):
            return [*before.prompt_ids, *extended[len(seen) :]], True
    return renderer.render(messages, tools), False


def _completion(
    renderer: Renderer, messages: Sequence[Message], tools: Tools | None, prompt_ids: Sequence[int], ends: Sequence[str]
) -> list[int]:
    """The ids with which the policy says the last of ``messages`` after ``prompt_ids``."""
    text = _said(renderer, messages, tools, prompt_ids)
    spelled = "|".join(map(re.escape, sorted(ends, key=len, reverse=True)))
    end = re.search(rf"({spelled})(?:{spelled}|\s)*$", text)  # Some templates end the conversation as well.
    said = text.rstrip() if end is None else text[: end.start()]
    if (early := re.search(spelled, said)) is not None:
        raise _unwritten(f"the chat template writes {early[0]!r} inside a turn, at which sampling would stop")
    _check_said(messages[-1], said)
    ending = _ending(renderer, messages, tools, ends) if end is None else end[1]
    return _encoded(renderer, messages, tools, prompt_ids, said + ending)


def _encoded(
    renderer: Renderer, messages: Sequence[Message], tools: Tools | None, prompt_ids: Sequence[int], text: str
) -> list[int]:
    """The ids of ``text`` after a prompt, split as behind the header of a turn unless it grows together with that."""
    header = _header(renderer, renderer.text(messages[:-1], tools, prompt=True))
    alone, both = renderer.vocabulary.encode(header), renderer.vocabulary.encode(header + text)
    if alone and both[: len(alone)] == alone:
        return both[len(alone) :]
    return renderer.vocabulary.encode_after(prompt_ids[-1], text)


def _header(renderer: Renderer, before: str) -> str:
    """The end of the text ``before`` a turn, from its last token of structure on."""
    return before[max((before.rfind(token) for token in renderer.control.texts), default=0) :]


def _ending(renderer: Renderer, messages: Sequence[Message], tools: Tools | None, ends: Sequence[str]) -> str:
    """The text of the token that ends a turn to which the template writes no end.

    It is the one with which what follows a turn begins, or else the usual one.
    """
    calls: Sequence[Any] = messages[-1].get("tool_calls") or ()
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": "1"} for call in calls
    ]
    with suppress(GatewayError):
        written = renderer.text(messages, tools, prompt=False).rstrip()
        after = renderer.text([*messages, *(results or [{"role": "user", "content": "1"}])], tools, prompt=False)
        rest = after[len(written) :].lstrip() if after.startswith(written) else ""
        if (begun := next((each for each in ends if rest.startswith(each)), None)) is not None:
            return begun
    usual = renderer.vocabulary.eos_token_id
    return renderer.vocabulary.decode([usual if usual in renderer.stop_ids else min(renderer.stop_ids)])


def _said(renderer: Renderer, messages: Sequence[Message], tools: Tools | None, prompt_ids: Sequence[int]) -> str:
    """The text of the last message, from where the prompt ends on."""
    before = renderer.text(messages[:-1], tools, prompt=True)
    whole = renderer.text(messages, tools, prompt=False)
    if whole.startswith(before):
        return whole[len(before) :]
    # The prompt opens, or closes, thinking that the template writes otherwise, or not at all, in a finished turn.
    for opening, closing in renderer.thinking_marks:
        header = re.search(rf"{re.escape(opening)}\s*({re.escape(closing)}\s*)?$", before)
        if header is None or not whole.startswith(before[: header.start()]):
            continue
        rest = whole[header.start() :]
        if header[1] is not None:
            return rest
        if rest.startswith(opening):
            return rest.removeprefix(opening).lstrip("\n")
        return f"{thinking_of(messages[-1])}\n{closing}\n\n{rest}"
    last = _header(renderer, before)
    if last in whole and last != before:  # Something before it has moved, such as the system message.
        return whole.rpartition(last)[2]
    raise _unwritten("the chat template writes what comes before a turn otherwise once the turn is there")


def _check_said(message: Message, text: str) -> None:
    """Raise ``GatewayError`` where ``text`` lacks something that ``message`` says."""
    spoken = text_of(message).rpartition("</think>")[2] if thinking_of(message) else text_of(message)
    calls: Sequence[Any] = message.get("tool_calls") or ()
    parts = [
        ("reasoning", thinking_of(message)),
        ("text", spoken.strip()),
        *(("tool call", call["function"]["name"]) for call in calls),
    ]
    for what, part in parts:
        if part.replace(MARK, "") not in text.replace(MARK, ""):
            raise _unwritten(f"the chat template leaves out the {what} of a turn, {shown(part, 60)}")


def _unwritten(problem: str) -> GatewayError:
    return GatewayError(
        problem, code="invalid_messages", param="messages", fix="leave it out of the messages, or name another template"
    )
