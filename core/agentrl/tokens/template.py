"""A model's own chat template: what every other way of rendering is measured against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.errors import ConfigError, GatewayError
from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["ChatTemplate", "Message", "Messages", "Tools", "plain", "text_of", "thinking_of"]

Message = dict[str, Any]
"""One message as the OpenAI API writes it, plain JSON."""

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """Renders whole conversations with the tokenizer's Jinja template."""

    def __init__(self, vocabulary: Vocabulary, origin: str) -> None:
        """``origin`` names the model in messages. Raises ``ConfigError`` where there is no template."""
        if not vocabulary.chat_template:
            raise ConfigError(
                f"the tokenizer of {origin} has no chat template",
                fix="use an instruction-tuned model, or put a chat_template.jinja beside its tokenizer.json",
            )
        self._vocabulary = vocabulary

    def text(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> str:
        """The conversation as text, with the header of the next assistant turn where ``prompt``.

        Raises ``GatewayError`` (400) where the template refuses the messages.
        """
        import jinja2

        try:
            rendered = self._vocabulary.apply_chat_template(
                [plain(message) for message in messages],
                tools=list(tools) if tools else None,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise GatewayError(
                f"the model's chat template refuses these messages: {error}", code="invalid_messages", param="messages"
            ) from error
        return str(rendered)

    def render(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> list[int]:
        """The ids of ``text``."""
        return self._vocabulary.encode(self.text(messages, tools, prompt=prompt))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``."""
        return self._vocabulary.decode(ids)


def plain(message: Mapping[str, Any]) -> Message:
    """The message as templates expect it: content a string, tool arguments an object where they parse."""
    role = "system" if message["role"] == "developer" else message["role"]
    changed: Message = {**message, "role": role, "content": text_of(message)}
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [{**call, "function": _parsed(call["function"])} for call in calls]
    elif "tool_calls" in message:
        del changed["tool_calls"]
    return changed


def text_of(message: Mapping[str, Any]) -> str:
    """A message's content as one text; text parts are joined."""
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


def thinking_of(message: Mapping[str, Any]) -> str:
    """The thinking that a turn of the assistant carries, beside its content or inside it."""
    if message["role"] != "assistant":
        return ""
    given = message.get("reasoning_content")
    if not given:
        before, mark, _ = text_of(message).rpartition("</think>")
        given = before.rpartition("<think>")[2] if mark else ""
    return str(given).strip()


def _parsed(function: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        arguments = None
    return {**function, "arguments": arguments if isinstance(arguments, dict) else function["arguments"]}
