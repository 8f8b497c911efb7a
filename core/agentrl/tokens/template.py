"""A model's own chat template: what every other way of rendering is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from agentrl.errors import ConfigError, GatewayError, one_line
from agentrl.tokens.form import Form, fitting_form, text_of
from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["ChatTemplate", "Message", "Messages", "Tools", "plain", "text_of", "thinking_of"]

Message = dict[str, Any]
"""One message as the OpenAI API writes it, plain JSON."""

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """Renders whole conversations with the tokenizer's Jinja template, every one on the same day."""

    def __init__(self, vocabulary: Vocabulary, origin: str, day: date | None = None) -> None:
        """``origin`` names the model in messages; ``day`` is what the template is told is today.

        Raises ``ConfigError`` where there is no template, or none that can be read.
        """
        if not vocabulary.chat_template:
            raise ConfigError(
                f"the tokenizer of {origin} has no chat template",
                fix="use an instruction-tuned model, put a chat_template.jinja beside its tokenizer.json, or name a "
                "template's file with model.chat_template",
            )
        self.vocabulary = vocabulary
        self.day = day or date.today()
        """The date in whatever is rendered."""
        self.form = Form()
        """How messages are put to the template."""
        self._check(origin)
        self.form = fitting_form(lambda messages: self._text(messages, None, prompt=False))

    @property
    def writes_date(self) -> bool:
        """Whether what the template writes depends on the day."""
        asked = [{"role": "user", "content": "Hi"}]
        try:
            return self._text(asked, None, self.day) != self._text(asked, None, self.day + timedelta(days=400))
        except GatewayError:  # Such a template is told of when it is to render what an agent sends.
            return False

    def text(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> str:
        """The conversation as text, with the header of the next assistant turn where ``prompt``.

        Raises ``GatewayError`` (400) where the template refuses the messages.
        """
        return self._text([self.form.put(message) for message in messages], tools, prompt=prompt)

    def _text(self, messages: Messages, tools: Tools | None, day: date | None = None, *, prompt: bool = True) -> str:
        from agentrl.tokens.jinja import TemplateError, rendered

        try:
            return rendered(
                self.vocabulary.get_chat_template(None, tools),
                messages,
                tools,
                prompt=prompt,
                day=day or self.day,
                tokens=self.vocabulary.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise GatewayError(
                f"the model's chat template refuses these messages: {error}", code="invalid_messages", param="messages"
            ) from error

    def _check(self, origin: str) -> None:
        from agentrl.tokens.jinja import TemplateSyntaxError

        try:
            self._text([{"role": "user", "content": "Hi"}], None)
        except GatewayError as error:
            if isinstance(place := error.__cause__, TemplateSyntaxError):
                raise ConfigError(
                    f"the chat template of {origin} cannot be read: line {place.lineno}: {one_line(place)}",
                    fix="mend it, or name another file with model.chat_template",
                ) from error

    def render(self, messages: Messages, tools: Tools | None = None, *, prompt: bool = True) -> list[int]:
        """The ids of ``text``."""
        return self.vocabulary.encode(self.text(messages, tools, prompt=prompt))

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``."""
        return self.vocabulary.encode(text)

    def up_to_end(self, ids: list[int]) -> list[int]:
        """``ids`` of a turn up to its last special token, which ends it; all of them where there is none."""
        last = max((n for n, token in enumerate(ids) if token in self.vocabulary.special_ids), default=len(ids) - 1)
        return ids[: last + 1]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``."""
        return self.vocabulary.decode(ids)


def plain(message: Mapping[str, Any]) -> Message:
    """The message as most templates expect it: content a string, tool arguments an object where they parse."""
    return Form().put(message)


def thinking_of(message: Mapping[str, Any]) -> str:
    """The thinking that a turn of the assistant carries, beside its content or inside it."""
    if message["role"] != "assistant":
        return ""
    given = message.get("reasoning_content")
    if not given:
        before, mark, _ = text_of(message).rpartition("</think>")
        given = before.rpartition("<think>")[2] if mark else ""
    return str(given).strip()
